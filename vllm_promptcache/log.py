"""Loggers whose lines appear among vLLM's."""

from __future__ import annotations

from typing import Any

from vllm.logger import init_logger


def module_logger(name: str) -> Any:
    """vLLM's logger for one of our modules; it sets up no others than its own and those below."""
    return init_logger(f"vllm.{name}")
