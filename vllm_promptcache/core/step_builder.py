"""How the workers' part of a step is put together while it is scheduled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from secrets import token_bytes

from vllm_promptcache.core.request import (
    EncodeRequest,
    InternalRequest,
    ModularRequest,
    ProbeRequest,
)
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.steps.slots import SlotCopy, ranges, slots_of
from vllm_promptcache.steps.step import (
    HostMove,
    ModuleBlocks,
    ObservedRequest,
    RelocationCopy,
    StepMetadata,
    module_blocks,
)
from vllm_promptcache.store import StoredModule

_ENCODE_ID_BYTES = 16


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
        # Admitted requests of which the workers do not know yet how they go on, by id.
        self._starting: dict[str, ModularRequest] = {}

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
        self._starting[modular.request_id] = modular
        modules, table = [module for _, module in modular.mapped or ()], modular.table
        if modular.num_copied_tokens:
            size = table.block_size
            sources = [
                (_slot(modules[tail.span], tail.kept.start, size), tail.kept.num_tokens)
                for tail in table.tails
            ]
            targets = ranges((run.start, run.num_tokens) for run in table.tail_slots)
            self._loads.append(SlotCopy(ranges(sources), slots_of(block_ids, targets, size)))
        if self._verify:
            self._metadata.checks += map(module_blocks, modules)

    def end(self, request_id: str) -> None:
        """Forgets a request with modules, here and in the workers."""
        self._starting.pop(request_id, None)
        self._metadata.ended.append(request_id)

    def compute_scheduled(
        self, num_scheduled_tokens: Mapping[str, int], block_ids_of: Callable[[str], list[int]]
    ) -> None:
        """What the workers are told of the requests in a step; nothing of those that go on.

        Args:
            num_scheduled_tokens: Request id -> tokens computed in the step.
            block_ids_of: Returns the block table of a request id.
        """
        for request_id, modular in list(self._starting.items()):
            if (num_tokens := num_scheduled_tokens.get(request_id)) is None:
                continue
            self.compute(modular, num_tokens, block_ids_of)
            if _goes_on(modular, modular.request.num_computed_tokens + num_tokens):
                del self._starting[request_id]

    def compute(
        self, modular: ModularRequest, num_tokens: int, block_ids_of: Callable[[str], list[int]]
    ) -> None:
        """Positions of the next `num_tokens` tokens of the request; the end of an encode.

        Args:
            modular: A request that is scheduled in this step.
            num_tokens: Tokens it computes in the step.
            block_ids_of: Returns the block table of a request id.
        """
        request, table = modular.request, modular.table
        start = request.num_computed_tokens
        offsets = table.positions.slices(start, num_tokens)
        self._metadata.position_offsets.append((modular.request_id, offsets))
        if table.inner is not None and (rows := table.inner.rows(start, num_tokens)):
            slots = table.inner.slots.slices(start, num_tokens)
            self._metadata.slot_offsets.append((modular.request_id, slots))
            self._metadata.rows.append((modular.request_id, rows))
        if isinstance(modular, InternalRequest) and start + num_tokens >= request.num_prompt_tokens:
            self._end(modular, num_tokens, block_ids_of(modular.request_id))

    def _end(self, internal: InternalRequest, num_tokens: int, block_ids: Sequence[int]) -> None:
        if isinstance(internal, EncodeRequest):
            self._end_encode(internal, block_ids)
        if isinstance(internal, ProbeRequest):
            num_observed = min(num_tokens, internal.num_observed)
            slots = slots_of(block_ids, internal.slot_indexes, internal.table.block_size)
            observed = ObservedRequest(internal.request_id, num_observed, slots)
            self._metadata.observed.append(observed)

    def _end_encode(self, encode: EncodeRequest, block_ids: Sequence[int]) -> None:
        """Moves the kept tokens to the front of the encode's own blocks, which become the module's.

        In place: the kept tokens never lie before their targets, and sources are read first.
        """
        size, first = encode.table.block_size, encode.table.num_shared_blocks
        encode.written_blocks = list(encode.module_blocks(block_ids))
        if encode.needs_compaction:
            own = encode.table.num_cached_tokens
            kept = ranges([(own + run.start, run.num_tokens) for run in encode.spec.kept_runs])
            targets = ranges([(first * size, encode.spec.num_kept_tokens)])
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
        if metadata.encoded:
            metadata.encode_id = token_bytes(_ENCODE_ID_BYTES)
        return metadata


def _slot(module: StoredModule, kept: int, block_size: int) -> int:
    """Slot of a kept token of a resident module."""
    return module.blocks[kept // block_size].block_id * block_size + kept % block_size


def _goes_on(modular: ModularRequest, index: int) -> bool:
    """Whether the tokens from `index` on have the offset of the one before it, and see all.

    The last run of new tokens lies behind all modules. Our own requests end with their prompts.
    """
    is_last_run = index > modular.table.positions.starts[-1]
    return is_last_run and not isinstance(modular, InternalRequest)
