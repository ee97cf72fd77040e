"""Residency: the life of the requests that read modules, from arrival to end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.request import Request, RequestStatus

from vllm_promptcache.core.adapters import Adapters, not_started
from vllm_promptcache.core.admission.cold import ColdModules
from vllm_promptcache.core.admission.encodes import Encodes
from vllm_promptcache.core.admission.supply import ModuleSupply
from vllm_promptcache.core.admission.waiting import WaitingRequests
from vllm_promptcache.core.arrivals import Arrivals
from vllm_promptcache.core.mapping import map_blocks
from vllm_promptcache.core.private_blocks import hash_private_blocks, order_tokens
from vllm_promptcache.core.promotion.for_nobody import EncodesForNobody
from vllm_promptcache.core.promotion.promotions import Promotions
from vllm_promptcache.core.repair.probes import Probes
from vllm_promptcache.core.reports.admissions import Admissions
from vllm_promptcache.core.reports.metrics import ModuleMetrics
from vllm_promptcache.core.request import (
    EncodeRequest,
    InternalRequest,
    ModularRequest,
    ProbeRequest,
)
from vllm_promptcache.core.step_builder import StepBuilder
from vllm_promptcache.core.tiers.prefetch import Prefetch
from vllm_promptcache.core.tiers.tiers import ModuleTiers
from vllm_promptcache.errors import PlanError
from vllm_promptcache.steps.step import StepMetadata
from vllm_promptcache.store import ModuleStore, Pins


class ModuleResidency:
    """Owns the state of every request that reads modules, from its arrival to its end.

    The scheduler calls it at the seams it overrides, the connector at those of vLLM's connector
    API; neither keeps state of its own. A bad request raises nothing here, since an exception in
    the scheduler ends the engine: it is put on `rejected`.

    Attributes:
        store: The module store.
        pins: Modules that stay resident.
        tiers: Where modules go when they leave the KV cache, and come back from.
        promotions: Which combinations of modules are encoded exactly.
        prefetch: Brings modules back before they are asked for.
        encodes: The encodes under way.
        for_nobody: Starts those that nobody waits for.
        probes: The probes under way.
        metrics: Counters for Prometheus.
        adapters: Which weights requests with LoRA adapters run with.
        rejected: Request id -> why it cannot be served; the scheduler ends these requests.
    """

    def __init__(
        self,
        block_pool: BlockPool,
        block_size: int,
        *,
        max_pinned_share: float = 0.5,
        evicts_by_value: bool = True,
        num_host_blocks: int = 0,
        has_disk: bool = False,
        num_workers: int = 1,
        prefetches: bool = False,
        promote_after: int = 0,
        max_promoted_share: float = 0.25,
        verify: bool = False,
        max_rows: int | None = None,
        encode_after: int = 1,
    ) -> None:
        self.store = ModuleStore(block_pool)
        num_usable = block_pool.num_gpu_blocks - 1  # one is vLLM's null block
        self.pins = Pins(self.store, int(max_pinned_share * num_usable))
        self._step = StepBuilder(verify=verify)
        self.tiers = ModuleTiers(
            self.store,
            self._step,
            evicts_by_value=evicts_by_value,
            num_host_blocks=num_host_blocks,
            has_disk=has_disk,
            num_workers=num_workers,
        )
        self.promotions = Promotions(
            self.store,
            self.tiers,
            block_size=block_size,
            after=promote_after,
            max_blocks=int(max_promoted_share * num_usable),
        )
        self.prefetch = Prefetch(self.store, self.tiers, is_on=prefetches)
        self.encodes = Encodes(block_size)
        self.probes = Probes(max_blocks=num_usable, max_rows=max_rows)
        self.metrics = ModuleMetrics(self.store)
        self.adapters = Adapters()
        self.rejected: dict[str, str] = {}
        supply = ModuleSupply(self.store, self.pins, self.tiers, self.encodes, self.metrics)
        self._requests: dict[str, ModularRequest] = {}
        self._cold = ColdModules(
            self.store, self.tiers, self.encodes, self.probes, encode_after, max_rows
        )
        self._waiting = WaitingRequests(
            supply, self.probes, self._cold, self.rejected, self._requests, block_size
        )
        self.for_nobody = EncodesForNobody(self.promotions, self._cold, self.encodes, self._waiting)
        self._ended_internal: set[str] = set()
        self._pool = block_pool
        self._arrivals = Arrivals(self.promotions, self._waiting.fits, block_size, max_rows)
        self._admissions = Admissions(self.store, self.tiers, self.pins, self.metrics)

    @property
    def requests(self) -> Mapping[str, ModularRequest]:
        """All live requests that read modules, encodes included, by id."""
        return self._requests

    def get(self, request: Request) -> ModularRequest | None:
        """Returns the state of `request` if it reads modules."""
        return self._requests.get(request.request_id)

    def may_publish(self, request: Request, num_tokens: int) -> bool:
        """Whether vLLM may share the full blocks among a request's first tokens.

        Those of an encode hold padding, those of a probe are nobody's. Where new tokens stand
        between tails, a block may lack tokens that come later in vLLM's count.
        """
        modular = self._requests.get(request.request_id)
        if modular is None or isinstance(modular, InternalRequest):
            return modular is None
        return modular.table.inner is None or num_tokens >= modular.table.inner_end

    def num_ahead(self, request: Request) -> int:
        """Tokens up to which a request needs all its slots as soon as it has any."""
        modular = self._requests.get(request.request_id)
        return modular.table.inner_end if modular is not None and modular.table.inner else 0

    def add(self, request: Request) -> None:
        """Takes note of a new request that carries a plan; rejects it if the plan is bad."""
        try:
            modular = self._arrivals.read(request)
        except PlanError as error:
            self.rejected[request.request_id] = str(error)
            return
        if modular is None:
            return
        self._cold.asked(modular)
        order_tokens(modular)
        if not modular.attended:
            hash_private_blocks(modular)
        elif modular.reads_private_blocks:
            self.probes.recall(modular)
        # vLLM would take the option for "nothing is cached" and drop the copies of the tails.
        request.skip_reading_prefix_cache = False
        if self.prefetch.is_on:
            siblings = modular.prompt.plan.sibling_keys
            self.prefetch.want(modular.store_key(key) for key in siblings)
        self._requests[modular.request_id] = modular
        self._waiting.add(modular)

    def follow_adapters(self, requests: Iterable[Request]) -> None:
        """Lets requests read nothing that was computed with weights which are gone since.

        Args:
            requests: vLLM's, with and without modules. What has begun goes on.
        """
        if not (changed := self.adapters.take_changed()):
            return
        self.for_nobody.forget(changed)
        for request in not_started(changed, requests):
            if (modular := self.get(request)) is None:
                self.adapters.name(request)
                continue
            self._waiting.leave(modular)
            self.adapters.name(request)
            self._waiting.add(modular)
            if not modular.attended and not isinstance(modular, InternalRequest):
                hash_private_blocks(modular)

    def encode_for_nobody(self, *, is_idle: bool) -> list[Request]:
        """Returns what is encoded next though nobody waits for it, as `EncodesForNobody.start`."""
        return self._enter(self.for_nobody.start(is_idle=is_idle))

    def is_for_nobody(self, request: Request) -> bool:
        """Whether a request is one of our own that no user's request waits for."""
        encode = self.get(request)
        return isinstance(encode, EncodeRequest) and all(
            waiter in self._requests and self.is_for_nobody(self._requests[waiter].request)
            for waiter in encode.waiters
        )

    def _enter(self, internals: Sequence[InternalRequest]) -> list[Request]:
        """Takes note of new requests of our own; returns them as vLLM's."""
        self._requests.update((internal.request_id, internal) for internal in internals)
        return [internal.request for internal in internals]

    def preempted(self, request: Request) -> None:
        """Takes note that `request` lost its blocks and waits again.

        With what it has generated it may have outgrown the pool: while it ran, it did not need
        the blocks of its modules' tails any more.
        """
        if (modular := self.get(request)) is not None:
            self._waiting.add(modular)
            if isinstance(modular, EncodeRequest):
                modular.written_blocks = None

    def finish(self, request: Request, blocks: Sequence[KVCacheBlock]) -> None:
        """Forgets a finished request; publishes its module if it was an encode that ran.

        Args:
            request: A finished request that still holds its blocks.
            blocks: Those blocks, in order.
        """
        if (modular := self._requests.pop(request.request_id, None)) is None:
            return
        self._waiting.ended(modular)
        self._step.end(modular.request_id)
        self.probes.leave(modular)
        if isinstance(modular, InternalRequest):
            self._ended_internal.add(modular.request_id)
        if isinstance(modular, ProbeRequest):
            self.probes.end(modular)
        if isinstance(modular, EncodeRequest):
            self.encodes.finish(modular)
            if request.status != RequestStatus.FINISHED_ABORTED:
                self._publish(modular, modular.module_blocks(blocks))

    def _publish(self, encode: EncodeRequest, blocks: Sequence[KVCacheBlock]) -> None:
        # Blocks that changed since the last chunk was scheduled hold something else.
        if blocks and [block.block_id for block in blocks] == encode.written_blocks:
            self.store.commit(encode.key, blocks, encode.spec.num_kept_tokens)
            self.tiers.encoded(encode.key)
            self.pins.fulfil(encode.key)
            self.metrics.encoded(encode)

    def release(self, keep: Collection[str] = ()) -> None:
        """Lets go of all modules but those of the holders in `keep`: request ids, `PIN_OWNER`."""
        self._waiting.release(keep)

    def prepare(
        self, waiting: Iterable[Request], num_running: int, num_reserved: int = 0
    ) -> list[Request]:
        """Pins the modules of the requests near admission and starts the encodes they need.

        Args:
            waiting: The waiting queue, head first.
            num_running: Running requests of users; each may need a block in this step.
            num_reserved: Blocks that running requests still need for their prompts.

        Returns:
            New encodes and probes, to be put ahead of the queue in this order.
        """
        self.probes.give_up()
        self.pins.expire()
        if not self._waiting:
            self.prefetch.advance()
            self.tiers.drop_unclaimed(keep=self.prefetch.wanted)
        return self._enter(self._waiting.prepare(waiting, num_running, num_reserved))

    def holds_back(self, request: Request) -> bool:
        """Whether `request`, the next one in the queue, must not be admitted in this step."""
        return self._waiting.holds_back(request)

    def is_over(self, request: Request) -> bool:
        """Whether none behind `request`, which vLLM has come to, can be admitted in this step."""
        return self._waiting.is_over(request)

    @property
    def is_short_of_room(self) -> bool:
        """Whether a user's request waits for blocks in this step."""
        return self._waiting.is_short_of_room

    def take_ended_internal(self) -> set[str]:
        """Returns the ids of our own requests that have ended; nobody waits for their output."""
        ended, self._ended_internal = self._ended_internal, set()
        return ended

    def take_orphans(self) -> list[str]:
        """Returns the ids of our own requests that nobody waits for any more, to be aborted."""
        return self.encodes.take_orphans() + self.probes.take_orphans()

    def take_rejected(self) -> dict[str, str]:
        """Returns the rejected requests, and with each of our own those that wait for it."""
        rejected = dict(self.rejected)
        self.rejected.clear()
        for request_id, reason in list(rejected.items()):
            rejected.update(dict.fromkeys(self._dependents(request_id), reason))
        return rejected

    def _dependents(self, request_id: str) -> Iterator[str]:
        internal = self._requests.get(request_id)
        if isinstance(internal, ProbeRequest):
            yield internal.asker.request_id
        if isinstance(internal, EncodeRequest):
            for waiter in internal.waiters:
                yield waiter
                yield from self._dependents(waiter)

    def map(self, modular: ModularRequest) -> list[KVCacheBlock] | None:
        """Returns the blocks that `modular` shares, or None if it cannot be admitted.

        The scheduler references them before it allocates anything else, so that they cannot be
        evicted in between. Sets `modular.mapped` and `modular.num_private_hits`.
        """
        try:
            return map_blocks(modular, self.store, self._pool)
        except PlanError as error:
            self.rejected[modular.request_id] = str(error)
            return None

    def admit(self, request: Request, block_ids: Sequence[int]) -> None:
        """Takes note that `request` has its blocks; plans the copies of its modules' tails.

        Args:
            request: The request; its modules were mapped just before.
            block_ids: Its block table, the shared blocks first.
        """
        if (modular := self.get(request)) is not None:
            self._step.admit(modular, block_ids)
            self._waiting.admitted(modular)
            self._admissions.add(modular)

    def end_step(
        self, num_scheduled_tokens: Mapping[str, int], block_ids_of: Callable[[str], list[int]]
    ) -> StepMetadata:
        """Returns the workers' part of the step that was just scheduled, and starts a new one.

        Args:
            num_scheduled_tokens: Request id -> tokens computed in the step.
            block_ids_of: Returns the block table of a request id.
        """
        self._admissions.end_step()
        self._step.compute_scheduled(num_scheduled_tokens, block_ids_of)
        return self._step.take()
