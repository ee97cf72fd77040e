"""What tests of the scheduler's half share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def logging_as_before() -> Iterator[None]:
    """An engine's configuration sets up vLLM's logger, whose lines other tests look for."""
    logger = logging.getLogger("vllm")
    propagate, level, handlers = logger.propagate, logger.level, list(logger.handlers)
    yield
    logger.propagate, logger.handlers = propagate, handlers
    logger.setLevel(level)
