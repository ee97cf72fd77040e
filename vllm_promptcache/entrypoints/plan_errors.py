"""Counts prompts that are refused, and marks that are not read, for Prometheus."""

from __future__ import annotations

from functools import cache

from prometheus_client import Counter

from vllm_promptcache.core.reports.schema_series import PREFIX
from vllm_promptcache.errors import (
    NotFoundError,
    PlanError,
    PMLError,
    PromptCacheError,
    UnsupportedError,
)
from vllm_promptcache.log import module_logger

logger = module_logger(__name__)

_KINDS = {PMLError: "pml", UnsupportedError: "unsupported", PlanError: "plan", NotFoundError: "404"}


def count_plan_error(error: PromptCacheError) -> None:
    """Counts a prompt that was refused."""
    _plan_errors().labels(_kind(error)).inc()


def count_unread_marks(error: PromptCacheError) -> None:
    """Counts a conversation whose modules could not be read, so that it is served without."""
    logger.debug("Modules of a chat are not read: %s", error)
    _unread_marks().labels(_kind(error)).inc()


def _kind(error: PromptCacheError) -> str:
    return next((kind for cls, kind in _KINDS.items() if isinstance(error, cls)), "other")


@cache
def _plan_errors() -> Counter:
    # Made when first needed: by then vLLM has set up the registry of several API servers.
    return Counter(f"{PREFIX}plan_errors", "Prompts that were refused, by kind.", ["kind"])


@cache
def _unread_marks() -> Counter:
    return Counter(
        f"{PREFIX}unread_marks", "Chats that were served without their modules, by kind.", ["kind"]
    )
