"""Data parallel: requests go to the rank that holds their modules, unless it is too busy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from operator import attrgetter
from typing import Any

from vllm_promptcache.errors import PlanError
from vllm_promptcache.ranking import Replicas
from vllm_promptcache.sequence.codec import INLINE, PLAN_KEY, Plan, unpack_plan
from vllm_promptcache.sequence.spans import ModuleSpan

# A rank with this many requests more than the least busy one is passed over for it: about what a
# batch can take on before one more request costs more than an encode.
BUSY_MARGIN = 8


class ModuleAffinity:
    """Remembers to which ranks a front end has sent modules.

    What a rank has evicted is not known here, and is encoded again there.

    Args:
        busy_margin: Requests by which a rank may be busier than another and still be preferred.
    """

    def __init__(self, busy_margin: int = BUSY_MARGIN) -> None:
        self._ranks = Replicas(busy_margin)

    def choose(self, spans: Sequence[ModuleSpan], loads: Sequence[float], schema: str = "") -> int:
        """Chooses a rank, see `ranking.order`, and remembers that it gets the modules.

        Among ranks that hold none, a schema goes to the same rank whichever front end chooses:
        each has a memory of its own.

        Args:
            spans: The modules of a request.
            loads: Requests at each rank, `[num_ranks]`.
            schema: Name of their schema.
        """
        names = _names(len(loads))
        tokens = {span.key: span.num_tokens for span in spans}
        chosen = next(self._ranks.rank(schema, tokens, names, loads))
        self._ranks.expect(names[chosen], tokens, time.monotonic())
        return chosen

    def route(self, original: Callable[..., Any], client: Any, request: Any) -> Any:
        """Wraps `DPLBAsyncMPClient.get_core_engine_for_request`."""
        extra_args = (request.sampling_params and request.sampling_params.extra_args) or {}
        if request.data_parallel_rank is None and PLAN_KEY in extra_args:
            request.data_parallel_rank = self._rank(client, request, extra_args[PLAN_KEY])
        return original(client, request)

    def _rank(self, client: Any, request: Any, plan: bytes) -> int | None:
        try:
            packed = unpack_plan(plan, num_prompt_tokens=len(request.prompt_token_ids))
        except PlanError:
            return None  # the scheduler refuses it
        spans = packed.spans
        return self.choose(spans, _loads(client), group_name(packed)) if spans else None


def group_name(plan: Plan) -> str:
    """What prompts that read the same modules have in common: their schema, or the longest."""
    if plan.schema != INLINE:
        return plan.schema
    longest = max(plan.spans, key=attrgetter("num_tokens")).key
    return next((r.origin for r in plan.relocations if r.key == longest), longest).hex()


def _loads(client: Any) -> list[float]:
    """Requests at each rank: what the coordinator said last, or what this client has sent."""
    return [
        max(client.client_count * client.engine_inflight[engine], waiting + running)
        for engine, (waiting, running, _) in zip(
            client.core_engines, client.lb_engines, strict=True
        )
    ]


@cache
def _names(num_ranks: int) -> tuple[str, ...]:
    return tuple(map(str, range(num_ranks)))
