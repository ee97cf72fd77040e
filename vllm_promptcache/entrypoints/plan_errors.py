"""Counts prompts that are refused, for Prometheus."""

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

_KINDS = {PMLError: "pml", UnsupportedError: "unsupported", PlanError: "plan", NotFoundError: "404"}


def count_plan_error(error: PromptCacheError) -> None:
    """Counts a prompt that was refused."""
    kinds = (kind for cls, kind in _KINDS.items() if isinstance(error, cls))
    _plan_errors().labels(next(kinds, "other")).inc()


@cache
def _plan_errors() -> Counter:
    # Made when first needed: by then vLLM has set up the registry of several API servers.
    return Counter(f"{PREFIX}plan_errors", "Prompts that were refused, by kind.", ["kind"])
