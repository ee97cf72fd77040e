"""What the scheduler tells the workers about one step, and what they tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiKVConnectorMetadata

from vllm_promptcache.sequence.rows import AttentionRows
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.steps.slots import SlotCopy, Slots
from vllm_promptcache.store import ReadModule, StoredModule

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
        ended: Ids of requests with modules that have ended since the last step; one of the same id
            may begin in this step.
        position_offsets: `(num_tokens, position - index)` runs of the tokens that requests with
            modules compute in this step. The tokens of one that is not named have the offset of its
            last one that was: workers keep it until they are told that the request has ended.
        slot_offsets: The same of slots, `(num_tokens, slot's index - index)`, in each step in which
            a request has new tokens between those of modules.
        rows: What the tokens of these requests see.
        observed: Probes whose last tokens are computed in this step.
        stores: Copies after the forward pass: kept tokens of modules to the front of their blocks.
        encoded: Modules whose encode ends with this step.
        encode_id: Of these encodes, and of no others anywhere: by it workers' files of a module are
            known to belong together. Empty if there are none.
        is_verified: Whether to take their fingerprints.
    """

    moves: list[HostMove | RelocationCopy] = field(default_factory=list)
    checks: list[ModuleBlocks] = field(default_factory=list)
    loads: SlotCopy | None = None
    ended: list[str] = field(default_factory=list)
    position_offsets: list[tuple[str, OffsetRuns]] = field(default_factory=list)
    slot_offsets: list[tuple[str, OffsetRuns]] = field(default_factory=list)
    rows: list[tuple[str, AttentionRows]] = field(default_factory=list)
    observed: list[ObservedRequest] = field(default_factory=list)
    stores: SlotCopy | None = None
    encoded: list[ModuleBlocks] = field(default_factory=list)
    encode_id: bytes = b""
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
    """What a worker has found out since its last report, and what it can do; or some workers have.

    Attributes:
        found: Modules that are in host memory now, once for each worker that has read its shard.
        absent: Keys of modules that are not there, or not valid, once for each worker.
        can_relocate: Whether the worker can rotate keys to other positions.
        attention: To each token of the sequence of a probe, by its id, see `AttentionProbe`. To
            read it may be to wait for the worker's device.
        num_clears: How often the worker has forgotten host memory; what it has found before the
            last time that the scheduler said so is gone.
        adapters: LoRA adapters that were loaded, by vLLM's id, with the fingerprint of their files.
    """

    found: list[ReadModule]
    absent: list[bytes]
    can_relocate: bool = False
    attention: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    adapters: dict[int, bytes] = field(default_factory=dict)
    num_clears: int = 0

    def aggregate(self, other: KVConnectorWorkerMetadata) -> WorkerReport:
        """Joins the reports of two workers after the same step.

        Each worker has seen its own heads, or layers. Which one answered what is not told: all of
        them answer every question once.
        """
        assert isinstance(other, WorkerReport)
        found, absent = self.found + other.found, self.absent + other.absent
        both = self.attention.keys() | other.attention.keys()
        attention = {
            key: sum(report.attention[key] for report in (self, other) if key in report.attention)
            for key in both
        }
        can_relocate = self.can_relocate and other.can_relocate
        # The first worker is on the scheduler's machine and sees the same files.
        adapters = {**other.adapters, **self.adapters}
        num_clears = min(self.num_clears, other.num_clears)
        return WorkerReport(found, absent, can_relocate, attention, adapters, num_clears)
