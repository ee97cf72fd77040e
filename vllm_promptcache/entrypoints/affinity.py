"""Data parallel: requests go to the rank that holds their modules, unless it is too busy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from vllm_promptcache.errors import PlanError
from vllm_promptcache.sequence.codec import PLAN_KEY, unpack_plan
from vllm_promptcache.sequence.spans import ModuleSpan

# A rank with this many requests more than the least busy one is passed over for it: about what a
# batch can take on before one more request costs more than an encode.
BUSY_MARGIN = 8
# Modules whose ranks are remembered; what a rank has evicted is not known here, and is encoded
# again there.
MAX_NUM_MODULES = 65_536


@dataclass(slots=True)
class ModuleAffinity:
    """Remembers to which ranks a front end has sent modules.

    Attributes:
        busy_margin: Requests by which a rank may be busier than another and still be preferred.
    """

    busy_margin: int = BUSY_MARGIN
    _ranks: OrderedDict[bytes, set[int]] = field(default_factory=OrderedDict)

    def choose(self, spans: Sequence[ModuleSpan], loads: Sequence[float], schema: str = "") -> int:
        """Chooses a rank and remembers that it gets the modules.

        The one that holds most tokens of them. Among ranks that hold none, a schema goes to the
        same rank whichever front end chooses: each has a memory of its own.

        Args:
            spans: The modules of a request.
            loads: Requests at each rank, `[num_ranks]`.
            schema: Name of their schema.
        """
        least = min(loads)
        ranks = [i for i, load in enumerate(loads) if load <= least + self.busy_margin]
        chosen = max(ranks, key=lambda rank: (self._num_held(spans, rank), _weight(schema, rank)))
        for span in spans:
            self._ranks.setdefault(span.key, set()).add(chosen)
            self._ranks.move_to_end(span.key)
        while len(self._ranks) > MAX_NUM_MODULES:
            self._ranks.popitem(last=False)
        return chosen

    def _num_held(self, spans: Sequence[ModuleSpan], rank: int) -> int:
        return sum(span.num_tokens for span in spans if rank in self._ranks.get(span.key, ()))

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
        return self.choose(spans, _loads(client), packed.schema) if spans else None


def _loads(client: Any) -> list[float]:
    """Requests at each rank: what the coordinator said last, or what this client has sent."""
    return [
        max(client.client_count * client.engine_inflight[engine], waiting + running)
        for engine, (waiting, running, _) in zip(
            client.core_engines, client.lb_engines, strict=True
        )
    ]


def _weight(schema: str, rank: int) -> bytes:
    return sha256(rank.to_bytes(4, "big") + schema.encode()).digest()
