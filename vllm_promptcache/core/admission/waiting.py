"""Requests that wait for their modules: which may be admitted, and what is encoded for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from vllm.v1.request import Request

from vllm_promptcache.core.admission.admission import Admission
from vllm_promptcache.core.admission.cold import ColdModules
from vllm_promptcache.core.admission.demand import BlockDemand
from vllm_promptcache.core.admission.supply import ModuleSupply
from vllm_promptcache.core.admission.units import Near, Units
from vllm_promptcache.core.repair.probes import Probes
from vllm_promptcache.core.request import EncodeRequest, InternalRequest, ModularRequest
from vllm_promptcache.errors import PlanError
from vllm_promptcache.store import PIN_OWNER


class WaitingRequests:
    """Pins modules for the requests near admission, and has encoded and probed what they need.

    Args:
        supply: Where missing modules come from.
        probes: The probes under way.
        cold: Says which modules requests compute themselves.
        rejected: Request id -> why it cannot be served; filled here.
        requests: The state of all requests that read modules, by id.
        block_size: Tokens of a block.
    """

    def __init__(
        self,
        supply: ModuleSupply,
        probes: Probes,
        cold: ColdModules,
        rejected: dict[str, str],
        requests: Mapping[str, ModularRequest],
        block_size: int,
    ) -> None:
        self._supply = supply
        self._store = supply.store
        self._pins = supply.pins
        self._probes = probes
        self._cold = cold
        self._rejected = rejected
        self._requests = requests
        self._block_size = block_size
        self._demand = BlockDemand(supply.store, supply.tiers, supply.encodes, block_size)
        units = Units(self._demand, probes.of)
        pool = supply.store.block_pool
        self._admission = Admission(pool, block_size, units, requests, rejected)
        self._ids: set[str] = set()
        # Those whose modules are all pinned: nothing can change for them.
        self._held: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._ids)

    @property
    def _num_usable(self) -> int:
        """Blocks of the cache."""
        return self._store.block_pool.num_gpu_blocks - 1  # one is vLLM's null block

    def fits(self, modular: ModularRequest) -> bool:
        """Whether the pool can hold a request, if nothing else is in it.

        Raises:
            PlanError: A packed module of its plan is malformed.
        """
        return self._demand.needed(modular, modular.request.num_tokens) <= self._num_usable

    def add(self, modular: ModularRequest) -> None:
        """Puts a request among the waiting ones; rejects it if the pool can never hold it."""
        self._ids.add(modular.request_id)
        self._admission.stopped(modular)
        if isinstance(modular, InternalRequest):
            return  # it is counted with the request that waits for it
        request, num_usable = modular.request, self._num_usable
        num_at_last = request.num_prompt_tokens + request.max_tokens
        try:
            num_needed = self._demand.needed(modular, request.num_tokens)
            modular.runs_alone = self._demand.needed(modular, num_at_last) > num_usable
        except PlanError as error:
            self._rejected[modular.request_id] = str(error)
            return
        if num_needed > num_usable:
            self._rejected[modular.request_id] = self._too_large(modular, num_needed)

    def _too_large(self, modular: ModularRequest, num_needed: int) -> str:
        num_tokens, size = modular.request.num_tokens, self._block_size
        is_for_encodes = num_needed > modular.table.num_blocks(num_tokens)
        return (
            f"{num_tokens} tokens with their modules need {num_needed} KV cache blocks of "
            f"{size} tokens{' while these are encoded' if is_for_encodes else ''}, the cache has "
            f"{self._num_usable}"
        )

    def leave(self, modular: ModularRequest) -> None:
        """A request waits no more: it was admitted, or has ended."""
        self._ids.discard(modular.request_id)
        self._held.discard(modular.request_id)
        self._store.unpin(modular.request_id)
        self._supply.encodes.leave(modular)

    def admitted(self, modular: ModularRequest) -> None:
        """A request has got its blocks."""
        self.leave(modular)
        self._admission.admitted(modular)

    def ended(self, modular: ModularRequest) -> None:
        """A request has ended, in whatever way."""
        self.leave(modular)
        self._admission.stopped(modular)

    def release(self, keep: Collection[str] = ()) -> None:
        """Lets go of all modules but those of the holders in `keep`: request ids, `PIN_OWNER`."""
        self._held.intersection_update(keep)
        self._store.unpin_all(keep)

    def prepare(
        self, queue: Iterable[Request], num_running: int, num_reserved: int = 0
    ) -> list[InternalRequest]:
        """Pins the modules of the requests near admission and starts the encodes they need.

        Args:
            queue: vLLM's waiting queue, head first.
            num_running: Running requests of users; each may need a block in this step.
            num_reserved: Blocks that running requests still need for their prompts.

        Returns:
            New encodes and probes, in the order in which they are to run. They wait already.
        """
        self._admission.start_step()
        if not self and not self._pins and self._supply.encodes.for_nobody is None:
            return []
        near = self._admission.near(queue, num_running, num_reserved, self._held)
        self.release(keep={PIN_OWNER, *(one.modular.request_id for one in near)})
        self._make_pins_give_way(num_running)
        new: list[InternalRequest] = []
        for one in near:
            if one.modular.request_id not in self._held:
                new += self._hold(one)
            if one.modular.attended:
                new += self._probe(one.modular)
        return new

    def holds_back(self, request: Request) -> bool:
        """Whether `request`, the next one in the queue, must not be admitted in this step."""
        if self._admission.holds_back(request) or request.request_id in self._rejected:
            return True
        modular = self._requests.get(request.request_id)
        return modular is not None and bool(modular.attended)

    def is_over(self, request: Request) -> bool:
        """Whether none behind `request`, which vLLM has come to, can be admitted in this step."""
        return self._admission.is_over(request)

    def encode_for_nobody(self, source: ModularRequest, key: bytes) -> list[InternalRequest]:
        """Starts the encode of a module of a plan; returns it, behind those of its contexts.

        Raises:
            PlanError: As `ModuleSupply.encode`.
        """
        encode = self._supply.encodes.start_for_nobody(source, key)
        return self._begin(encode, is_serial=False)

    @property
    def is_short_of_room(self) -> bool:
        """Whether a user's request waits for blocks in this step."""
        return self._admission.is_short

    def _begin(self, encode: EncodeRequest, *, is_serial: bool) -> list[InternalRequest]:
        """Lets an encode in; returns it, behind those that it waits for."""
        self._ids.add(encode.request_id)
        self._admission.allow(encode)
        return [*self._hold(Near(encode, encode.sequence.spans, is_serial)), encode]

    def _probe(self, modular: ModularRequest) -> list[InternalRequest]:
        """Starts what a request waits for before it can be repaired."""
        if (probe := self._probes.start(modular)) is None:
            return []
        self._ids.add(probe.request_id)
        self._admission.allow(probe)
        return [probe]

    def _hold(self, near: Near) -> list[InternalRequest]:
        """Pins what is resident of a request and starts encodes of the rest, contexts first."""
        modular, new = near.modular, list[InternalRequest]()
        left_out = self._cold.leave_out(modular)
        spans = [span for span in near.spans if span.key not in left_out]
        for number, span in enumerate(spans):
            key = modular.store_key(span.key)
            if self._store.pin(modular.request_id, key):
                continue
            modular.account.has_waited = True
            new += self._provide(modular, span.key, is_serial=near.is_serial)
            # What is relocated is here by now.
            if not self._store.pin(modular.request_id, key) and near.is_serial:
                for later in spans[number + 1 :]:
                    self._store.unpin(modular.request_id, modular.store_key(later.key))
                break
        if {key for _, key in modular.span_keys()} <= self._store.held(modular.request_id):
            self._held.add(modular.request_id)
        return new

    def _provide(
        self, modular: ModularRequest, key: bytes, *, is_serial: bool
    ) -> list[InternalRequest]:
        try:
            encode = self._supply.provide(modular, key)
        except PlanError as error:
            self._rejected[modular.request_id] = str(error)
            return []
        return [] if encode is None else self._begin(encode, is_serial=is_serial)

    def _make_pins_give_way(self, num_running: int) -> None:
        """Lets go of pinned modules where nothing else keeps the first request from its blocks.

        That is so if nothing runs, or one that nothing may make wait. Pins of modules that the
        request needs itself stay until there are no others.
        """
        first = self._admission.blocked
        is_in_the_way = first is not None and not num_running
        if not self._pins or not (is_in_the_way or self._admission.is_one_alone):
            return
        modular = self._requests.get(first.request_id) if first is not None else None
        needed = {key for _, key in modular.span_keys()} if modular is not None else set()
        held = set(self._store.held(PIN_OWNER))
        self._pins.give_way(needed if held - needed else ())
