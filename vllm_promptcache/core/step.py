"""What the scheduler tells the workers about one step, and how it is put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiKVConnectorMetadata

from vllm_promptcache.core.private_order import AttentionRow
from vllm_promptcache.core.request import (
    EncodeRequest,
    InternalRequest,
    ModularRequest,
    ProbeRequest,
)
from vllm_promptcache.core.slots import SlotCopy, Slots, ranges, slots_of
from vllm_promptcache.plan.sequence import Run
from vllm_promptcache.store import StoredModule

OffsetRuns: TypeAlias = tuple[tuple[int, int], ...]
"""Consecutive tokens: for each run how many there are, and what is added to their index."""


@dataclass(frozen=True, slots=True)
class ModuleBlocks:
    """A module and where it lies in the KV cache.

    Attributes:
        key: The module's key in the store.
        block_ids: Blocks that hold it, in order.
        num_tokens: Its kept tokens.
    """

    key: bytes
    block_ids: tuple[int, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class HostMove:
    """What happens to a module in host memory, or to all of them; a fetch reads it from disk.

    The workers do a step's moves in order. So a save reads blocks before a later restore or the
    forward pass writes them, and a key that is dropped and saved again is there.
    """

    action: Literal["save", "restore", "drop", "clear", "fetch"]
    module: ModuleBlocks | None


@dataclass(frozen=True, slots=True)
class RelocationCopy:
    """A module is copied to other blocks, with its keys rotated to other positions.

    Attributes:
        source: The module where it is.
        target: Where it goes.
        kept: Positions of its tokens in `source`.
        shift: What is added to them.
    """

    source: ModuleBlocks
    target: ModuleBlocks
    kept: tuple[Run, ...]
    shift: int


@dataclass(frozen=True, slots=True)
class ObservedRequest:
    """A request whose last tokens are computed in a step, where it is told what they attend to.

    Attributes:
        request_id: vLLM's id.
        num_tokens: How many of its last tokens are observed.
        slots: Of all tokens of its sequence, `[num_tokens of the sequence]`.
    """

    request_id: str
    num_tokens: int
    slots: Slots


@dataclass(slots=True)
class StepMetadata(KVConnectorMetadata):
    """Work of the connector's worker side in one step, in this order.

    The first two come before anything of the step is written.

    Attributes:
        moves: Of modules: to and from host memory, and to other places, in the order in which
            they were decided.
        checks: Modules that requests map in this step (only with `verify`).
        loads: Copies before the forward pass: tail tokens into the blocks of new requests.
        position_offsets: For each request with modules, `(num_tokens, position - index)` runs of
            the tokens it computes in this step.
        slot_offsets: The same of slots, `(num_tokens, slot's index - index)`, for requests whose
            private tokens have an order of their own.
        rows: What the tokens of these requests see.
        observed: Probes whose last tokens are computed in this step.
        stores: Copies after the forward pass: kept tokens of modules to the front of their blocks.
        encoded: Modules whose encode ends with this step.
        is_verified: Whether to take their fingerprints.
    """

    moves: list[HostMove | RelocationCopy] = field(default_factory=list)
    checks: list[ModuleBlocks] = field(default_factory=list)
    loads: SlotCopy | None = None
    position_offsets: list[tuple[str, OffsetRuns]] = field(default_factory=list)
    slot_offsets: list[tuple[str, OffsetRuns]] = field(default_factory=list)
    rows: list[tuple[str, tuple[AttentionRow, ...]]] = field(default_factory=list)
    observed: list[ObservedRequest] = field(default_factory=list)
    stores: SlotCopy | None = None
    encoded: list[ModuleBlocks] = field(default_factory=list)
    is_verified: bool = False

    @property
    def filled_block_ids(self) -> list[int]:
        """Blocks that are filled before the forward pass with modules from elsewhere."""
        filled = [move.target for move in self.moves if isinstance(move, RelocationCopy)]
        filled += [
            move.module
            for move in self.moves
            if isinstance(move, HostMove) and move.action == "restore" and move.module is not None
        ]
        return [block_id for module in filled for block_id in module.block_ids]


def find_step(metadata: KVConnectorMetadata | None) -> StepMetadata | None:
    """Our part of what connectors told the workers, None if there is none."""
    if isinstance(metadata, MultiKVConnectorMetadata):
        metadata = metadata.metadata[0]
    return metadata if isinstance(metadata, StepMetadata) else None


def module_blocks(module: StoredModule) -> ModuleBlocks:
    """Where a resident module lies."""
    return ModuleBlocks(module.key, tuple(module.block_ids), module.num_tokens)


@dataclass(slots=True)
class WorkerReport(KVConnectorWorkerMetadata):
    """What a worker has found out since its last report, and what it can do.

    Attributes:
        found: Key, tokens and blocks of modules that are in host memory now.
        absent: Keys of modules that are not there, or not valid.
        can_relocate: Whether the worker can rotate keys to other positions.
        attention: To each token of the sequence of a probe, by its id, see `AttentionProbe`.
    """

    found: list[tuple[bytes, int, int]]
    absent: list[bytes]
    can_relocate: bool = False
    attention: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> WorkerReport:
        """Joins the reports of two workers; an engine with a disk tier has one.

        Each worker has seen its own heads, or layers.
        """
        assert isinstance(other, WorkerReport)
        found, absent = self.found + other.found, self.absent + other.absent
        both = self.attention.keys() | other.attention.keys()
        attention = {
            key: sum(report.attention[key] for report in (self, other) if key in report.attention)
            for key in both
        }
        return WorkerReport(found, absent, self.can_relocate and other.can_relocate, attention)


class StepBuilder:
    """Collects the work of the step that is being scheduled.

    Args:
        verify: Also let the workers compare each module's KV with its fingerprint.
    """

    def __init__(self, *, verify: bool) -> None:
        self._verify = verify
        self._metadata = StepMetadata(is_verified=verify)
        self._loads: list[SlotCopy] = []
        self._stores: list[SlotCopy] = []

    def save(self, module: StoredModule, drops: Sequence[bytes]) -> None:
        """Keeps a module in host memory that is leaving the KV cache; `drops` leave for it."""
        self.drop(drops)
        self._metadata.moves.append(HostMove("save", module_blocks(module)))

    def restore(self, module: StoredModule) -> None:
        """Fills the blocks of a module from host memory, before any request reads them."""
        self._metadata.moves.append(HostMove("restore", module_blocks(module)))

    def relocate(
        self, source: StoredModule, target: StoredModule, kept: Sequence[Run], shift: int
    ) -> None:
        """Makes a module of one at another place, before any request reads it."""
        copy = RelocationCopy(module_blocks(source), module_blocks(target), tuple(kept), shift)
        self._metadata.moves.append(copy)

    def fetch(self, key: bytes) -> None:
        """Begins to read a module from disk into host memory."""
        self._metadata.moves.append(HostMove("fetch", ModuleBlocks(key, (), 0)))

    def drop(self, keys: Sequence[bytes]) -> None:
        """Forgets modules in host memory."""
        self._metadata.moves += [HostMove("drop", ModuleBlocks(key, (), 0)) for key in keys]

    def forget_host(self) -> None:
        """Forgets all modules in host memory."""
        self._metadata.moves.append(HostMove("clear", None))

    def admit(self, modular: ModularRequest, block_ids: Sequence[int]) -> None:
        """Copies the tails of the request's modules behind its shared blocks.

        Nothing keeps the sources from being reused in this very step; that is safe because the
        workers read all sources before they write anything.

        Args:
            modular: A request whose modules are mapped.
            block_ids: Its block table, the shared blocks first.
        """
        size = modular.block_size
        tails = [
            (module.blocks[tail.start // size].block_id * size + tail.start % size, tail.num_tokens)
            for span, module in modular.mapped or ()
            for tail in span.tails(size)
        ]
        if modular.num_copied_tokens:
            indexes = ranges(modular.tail_ranges)
            self._loads.append(SlotCopy(ranges(tails), slots_of(block_ids, indexes, size)))
        if self._verify:
            self._metadata.checks += [module_blocks(module) for _, module in modular.mapped or ()]

    def compute(
        self, modular: ModularRequest, num_tokens: int, block_ids_of: Callable[[str], list[int]]
    ) -> None:
        """Positions of the next `num_tokens` tokens of the request; the end of an encode.

        Args:
            modular: A request that is scheduled in this step.
            num_tokens: Tokens it computes in the step.
            block_ids_of: Returns the block table of a request id.
        """
        request = modular.request
        start = request.num_computed_tokens
        offsets = modular.offsets.slices(start, num_tokens)
        self._metadata.position_offsets.append((modular.request_id, offsets))
        if modular.order is not None and (rows := modular.order.rows(start, num_tokens)):
            slots = modular.order.slots.slices(start, num_tokens)
            self._metadata.slot_offsets.append((modular.request_id, slots))
            self._metadata.rows.append((modular.request_id, rows))
        if isinstance(modular, InternalRequest) and start + num_tokens >= request.num_prompt_tokens:
            self._end(modular, num_tokens, block_ids_of(modular.request_id))

    def _end(self, internal: InternalRequest, num_tokens: int, block_ids: Sequence[int]) -> None:
        if isinstance(internal, EncodeRequest):
            self._end_encode(internal, block_ids)
        if isinstance(internal, ProbeRequest):
            num_observed = min(num_tokens, internal.num_observed)
            slots = slots_of(block_ids, internal.slot_indexes, internal.block_size)
            observed = ObservedRequest(internal.request_id, num_observed, slots)
            self._metadata.observed.append(observed)

    def _end_encode(self, encode: EncodeRequest, block_ids: Sequence[int]) -> None:
        """Moves the kept tokens to the front of the encode's own blocks, which become the module's.

        In place: the kept tokens never lie before their targets, and sources are read first.
        """
        size, first = encode.block_size, encode.num_shared_blocks * encode.block_size
        encode.written_blocks = list(encode.module_blocks(block_ids))
        if encode.needs_compaction:
            own = encode.sequence.num_cached_tokens
            kept = ranges([(own + run.start, run.num_tokens) for run in encode.spec.kept_runs])
            targets = ranges([(first, encode.spec.num_kept_tokens)])
            self._stores.append(
                SlotCopy(slots_of(block_ids, kept, size), slots_of(block_ids, targets, size))
            )
        blocks = tuple(encode.written_blocks)
        self._metadata.encoded.append(ModuleBlocks(encode.key, blocks, encode.spec.num_kept_tokens))

    def take(self) -> StepMetadata:
        """Returns the collected work and starts with an empty step."""
        metadata, self._metadata = self._metadata, StepMetadata(is_verified=self._verify)
        metadata.loads = SlotCopy.concatenate(self._loads)
        metadata.stores = SlotCopy.concatenate(self._stores)
        self._loads, self._stores = [], []
        return metadata
