"""Requests that wait for their modules: which may be admitted, and what is encoded for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from vllm.v1.request import Request

from vllm_promptcache.core.admission import Admission
from vllm_promptcache.core.demand import BlockDemand
from vllm_promptcache.core.probes import Probes
from vllm_promptcache.core.request import InternalRequest, ModularRequest
from vllm_promptcache.core.supply import ModuleSupply
from vllm_promptcache.errors import PlanError
from vllm_promptcache.store import PIN_OWNER


class WaitingRequests:
    """Pins modules for the requests near admission, and has encoded and probed what they need.

    Args:
        supply: Where missing modules come from.
        probes: The probes under way.
        rejected: Request id -> why it cannot be served; filled here.
        get: Returns the state of a request that reads modules.
        block_size: Tokens of a block.
    """

    def __init__(
        self,
        supply: ModuleSupply,
        probes: Probes,
        rejected: dict[str, str],
        get: Callable[[Request], ModularRequest | None],
        block_size: int,
    ) -> None:
        self._supply = supply
        self._store = supply.store
        self._pins = supply.pins
        self._probes = probes
        self._rejected = rejected
        self._get = get
        self._block_size = block_size
        self._block_demand = BlockDemand(supply.store, supply.tiers, supply.encodes, block_size)
        self._admission = Admission(supply.store.block_pool, get, self._demand)
        self._ids: set[str] = set()
        # Those whose modules are all pinned: nothing can change for them.
        self._held: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._ids)

    def add(self, modular: ModularRequest) -> None:
        """Puts a request among the waiting ones; rejects it if the pool can never hold it."""
        self._ids.add(modular.request_id)
        num_tokens = modular.request.num_tokens
        num_needed = modular.sequence.num_blocks(num_tokens, self._block_size)
        num_usable = self._store.block_pool.num_gpu_blocks - 1  # one is vLLM's null block
        if num_needed > num_usable:
            self._rejected[modular.request_id] = (
                f"{num_tokens} tokens with their modules need {num_needed} KV cache blocks of "
                f"{self._block_size} tokens, the cache has {num_usable}"
            )

    def leave(self, modular: ModularRequest) -> None:
        """A request waits no more: it was admitted, or has ended."""
        self._ids.discard(modular.request_id)
        self._held.discard(modular.request_id)
        self._store.unpin(modular.request_id)
        self._supply.encodes.leave(modular)

    def release(self, keep: Collection[str] = ()) -> None:
        """Lets go of all modules but those of the holders in `keep`: request ids, `PIN_OWNER`."""
        self._held.intersection_update(keep)
        self._store.unpin_all(keep)

    def prepare(self, queue: Iterable[Request], num_running: int) -> list[InternalRequest]:
        """Pins the modules of the requests near admission and starts the encodes they need.

        Args:
            queue: vLLM's waiting queue, head first.
            num_running: Running requests; each may need a block in this step.

        Returns:
            New encodes and probes, in the order in which they are to run. They wait already.
        """
        self._admission.start_step()
        if not self and not self._pins:
            return []
        near = self._admission.near(queue, num_running)
        self.release(keep={PIN_OWNER, *(modular.request_id for modular in near)})
        if not num_running:
            self._make_pins_give_way(next(iter(queue), None))
        return [
            internal
            for modular in near
            if modular.request_id not in self._held
            for internal in (self._probe(modular) if modular.attended else self._hold(modular))
        ]

    def holds_back(self, request: Request) -> bool:
        """Whether `request`, the next one in the queue, must not be admitted in this step."""
        if self._admission.is_behind_blocked(request) or request.request_id in self._rejected:
            return True
        modular = self._get(request)
        return modular is not None and bool(modular.attended)

    def encode(self, modular: ModularRequest, key: bytes) -> list[InternalRequest]:
        """Starts the encode of a module of a plan; returns it, behind those of its contexts.

        Raises:
            PlanError: As `ModuleSupply.encode`.
        """
        return self._begin(self._supply.encode(modular, key))

    def _begin(self, internal: InternalRequest) -> list[InternalRequest]:
        """Lets one of our own requests in; returns it, behind the encodes that it waits for."""
        self.add(internal)
        return [*self._hold(internal), internal]

    def _probe(self, modular: ModularRequest) -> list[InternalRequest]:
        """Starts what a request waits for before it can be repaired."""
        probe = self._probes.start(modular)
        return [] if probe is None else self._begin(probe)

    def _hold(self, modular: ModularRequest) -> list[InternalRequest]:
        """Pins what is resident of `modular` and starts encodes of the rest, contexts first."""
        new: list[InternalRequest] = []
        num_pinned = 0
        for span, key in modular.span_keys():
            if not self._store.pin(modular.request_id, key):
                modular.has_waited = True
                new += self._provide(modular, span.key)
            num_pinned += self._store.pin(modular.request_id, key)
        if num_pinned == len(modular.sequence.spans):
            self._held.add(modular.request_id)
        return new

    def _provide(self, modular: ModularRequest, key: bytes) -> list[InternalRequest]:
        try:
            encode = self._supply.provide(modular, key)
        except PlanError as error:
            self._rejected[modular.request_id] = str(error)
            return []
        return [] if encode is None else self._begin(encode)

    def _make_pins_give_way(self, first: Request | None) -> None:
        """With nothing running, only pins can keep the first request in the queue from its blocks.

        A running request that outgrows what pins leave is preempted, and comes here too.
        """
        if first is None or not self._pins or self._admission.fits(first):
            return
        modular = self._get(first)
        self._pins.give_way([key for _, key in modular.span_keys()] if modular else [])

    def _demand(self, request: Request, modular: ModularRequest | None) -> int:
        is_held = modular is not None and modular.request_id in self._held
        return self._block_demand.of(request, modular, is_held=is_held)
