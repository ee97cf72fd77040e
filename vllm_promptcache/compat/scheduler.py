"""The scheduler: which blocks are published, how many slots and tokens there are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from vllm_promptcache.compat.wrap import wrap

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request


def choose_published_blocks(
    manager: KVCacheManager, may_publish: Callable[[Request, int], bool]
) -> None:
    """Keeps blocks out of vLLM's prefix cache while `may_publish(request, num_tokens)` is false.

    Symptom without it: vLLM publishes the blocks of an encode while they still hold placeholders.
    Cause: it publishes every full block of a request.
    Can go when a request can opt out of publishing its blocks.
    """

    def cache_blocks(original: Callable[..., None], request: Request, num_tokens: int) -> None:
        if may_publish(request, num_tokens):
            original(request, num_tokens)

    wrap(manager.coordinator, "cache_blocks", cache_blocks)


def allocate_ahead(manager: KVCacheManager, num_ahead: Callable[[Request], int]) -> None:
    """Gives a request slots for its first `num_ahead(request)` tokens as soon as it gets any.

    vLLM allocates for the tokens of a step; slots that lie ahead are there for drafted tokens.
    Can go when a connector can say how many tokens a request needs slots for.
    """

    def allocate_slots(
        original: Callable[..., Any], request: Request, num_new_tokens: int, **options: Any
    ) -> Any:
        if (ahead := num_ahead(request)) < request.num_computed_tokens:
            return original(request, num_new_tokens, **options)
        num_cached = sum(
            options.get(name, 0)
            for name in ("num_new_computed_tokens", "num_external_computed_tokens")
        )
        num_tokens = request.num_computed_tokens + num_cached + num_new_tokens
        lookahead = options.pop("num_lookahead_tokens", 0)
        lookahead = max(lookahead, ahead - num_tokens)
        return original(request, num_new_tokens, num_lookahead_tokens=lookahead, **options)

    wrap(manager, "allocate_slots", allocate_slots)


@contextlib.contextmanager
def limited_step(scheduler: Scheduler, num_tokens: int | None) -> Iterator[None]:
    """Has the scheduler schedule so many tokens at most inside; None for as many as usual.

    See also `admit_no_more`.
    Can go when a connector can say how many tokens a step may have.
    """
    usual, max_num_active = scheduler.max_num_scheduled_tokens, scheduler.max_num_active_reqs
    if num_tokens is not None:
        scheduler.max_num_scheduled_tokens = min(num_tokens, usual)
    try:
        yield
    finally:
        scheduler.max_num_scheduled_tokens = usual
        scheduler.max_num_active_reqs = max_num_active


@contextlib.contextmanager
def limited_requests(scheduler: Any, limit: Callable[[Request, int], int] | None) -> Iterator[None]:
    """Has the scheduler compute `limit(request, num_tokens)` tokens of a request at most inside.

    A request that waits must be allowed one at least, or be held back. None limits nothing.
    Can go when a request can say how many of its tokens a step may compute.
    """
    if limit is None:
        yield
        return
    reserve = scheduler._reserve_prefill_lookahead

    def limited(request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        num_tokens: int = reserve(request, num_computed_tokens, limit(request, num_new_tokens))
        return num_tokens

    scheduler._reserve_prefill_lookahead = limited
    try:
        yield
    finally:
        del scheduler._reserve_prefill_lookahead


def admit_no_more(scheduler: Scheduler) -> None:
    """Ends the walk along the waiting queue in the step that is being scheduled.

    Only inside of `limited_step`, which takes it back.
    Symptom without it: in each step the whole queue is taken apart and put together again.
    Cause: vLLM goes on behind a request that may not be admitted.
    Can go when a scheduler's method can say that none behind it may be either.
    """
    scheduler.max_num_active_reqs = 0
