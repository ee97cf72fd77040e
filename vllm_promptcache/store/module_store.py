"""The module store: a view on vLLM's block pool, with no free list of its own.

A resident module is a list of blocks that carry the module's hashes. vLLM evicts them like any
prefix-cache block (least recently used, never while referenced). There is one owner of blocks, the
block pool, and the store cannot believe in a block that was given to somebody else: the pool takes
a block's hash away before it hands it out, tells the store, and a module of which one block is gone
is gone. `check_integrity` walks all blocks and proves it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass, field

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlock

from vllm_promptcache.compat.block_pool import after_loss, publish_block
from vllm_promptcache.store.history import Histories

RELOCATION_COST = 0.05
"""Time to relocate a module, as a share of that to encode it, about."""


@dataclass(frozen=True, slots=True)
class StoredModule:
    """A module that was encoded into `blocks`.

    Attributes:
        key: The key it was committed under.
        blocks: Its blocks in order; the last one may be partly filled.
        hashes: The hash each block carries as long as it holds this module.
        num_tokens: Kept tokens of the module.
        origin: Key of the module that it was relocated from, None if it was encoded.
    """

    key: bytes
    blocks: tuple[KVCacheBlock, ...]
    hashes: tuple[bytes, ...]
    num_tokens: int
    origin: bytes | None = None

    @property
    def value_per_block(self) -> float:
        """What it costs to have it back, in tokens to be encoded, for each of its blocks."""
        cost = self.num_tokens * (1.0 if self.origin is None else RELOCATION_COST)
        return cost / len(self.blocks)

    @property
    def is_intact(self) -> bool:
        """Whether every block still holds the module."""
        return all(
            block.block_hash == block_hash
            for block, block_hash in zip(self.blocks, self.hashes, strict=True)
        )

    @property
    def block_ids(self) -> list[int]:
        """Ids of the module's blocks, in order."""
        return [block.block_id for block in self.blocks]


@dataclass(slots=True)
class StoreStats:
    """Counters since the engine started.

    Attributes:
        num_commits: Modules that became resident.
        num_evictions: Modules that left (for room, or by a reset).
        num_saves: Of these, modules that went to host memory.
        num_restores: Modules that came back from there.
        num_fetches: Modules that were read from disk into host memory.
        num_prefetches: Modules that came back before a request asked for them.
        num_relocations: Modules that were made from one at another place.
        num_promotions: Combinations of modules that were encoded exactly.
        num_promoted_requests: Requests that read these instead of modules encoded alone.
        num_partly_promoted_requests: Requests that begin with modules of these.
    """

    num_commits: int = 0
    num_evictions: int = 0
    num_saves: int = 0
    num_restores: int = 0
    num_fetches: int = 0
    num_prefetches: int = 0
    num_relocations: int = 0
    num_promotions: int = 0
    num_promoted_requests: int = 0
    num_partly_promoted_requests: int = 0


@dataclass(slots=True)
class ModuleStore:
    """Maps module keys to resident blocks and holds references for requests near admission.

    Attributes:
        block_pool: vLLM's pool, of which this is the only store; owner of all blocks and of their
            reference counts.
        stats: Counters since the engine started.
        histories: Counts of each module.
    """

    block_pool: BlockPool
    stats: StoreStats = field(default_factory=StoreStats)
    histories: Histories = field(default_factory=Histories)
    _modules: dict[bytes, StoredModule] = field(default_factory=dict)
    _pins: dict[str, dict[bytes, StoredModule]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        after_loss(self.block_pool, self._lost_block)

    def lookup(self, key: bytes) -> StoredModule | None:
        """Returns the module if it is resident."""
        return self._modules.get(key)

    def commit(
        self,
        key: bytes,
        blocks: Sequence[KVCacheBlock],
        num_tokens: int,
        origin: bytes | None = None,
    ) -> StoredModule:
        """Publishes `blocks`, which hold the module `key`; returns it.

        The caller still holds its reference on the blocks; they stay when it is dropped, as
        eviction candidates. A module that is resident already stays where it is.
        """
        if (known := self.lookup(key)) is not None:
            return known
        hashes = tuple(publish_block(self.block_pool, b, key, i) for i, b in enumerate(blocks))
        module = StoredModule(key, tuple(blocks), hashes, num_tokens, origin)
        self._modules[key] = module
        self.stats.num_commits += 1
        return module

    def evict(self, key: bytes) -> None:
        """Forgets a resident module; its blocks carry its hashes no more."""
        self._forget(self._modules[key])

    def __len__(self) -> int:
        return len(self._modules)

    def pin(self, owner: str, key: bytes) -> bool:
        """Keeps a module from eviction until `owner` is unpinned. Idempotent.

        Returns:
            Whether the module is resident, and thus pinned.
        """
        pins = self._pins.setdefault(owner, {})
        if key in pins:
            return True
        if (module := self.lookup(key)) is None:
            return False
        self.block_pool.touch(module.blocks)
        pins[key] = module
        return True

    def unpin(self, owner: str, key: bytes | None = None) -> None:
        """Drops the references that `owner` holds, or that on one module if it holds one.

        The modules become eviction candidates.
        """
        pins = self._pins.get(owner, {})
        for pinned in list(pins) if key is None else pins.keys() & {key}:
            # The last block first: like vLLM, which wants the head of a sequence to stay longest.
            self.block_pool.free_blocks(reversed(pins.pop(pinned).blocks))
        if not pins:
            self._pins.pop(owner, None)

    def held(self, owner: str) -> Set[bytes]:
        """Keys of the modules that `owner` keeps from eviction."""
        return self._pins.get(owner, {}).keys()

    def unpin_all(self, keep: Collection[str] = ()) -> None:
        """Unpins every owner but those in `keep`."""
        for owner in self._pins.keys() - set(keep):
            self.unpin(owner)

    @property
    def modules(self) -> dict[bytes, StoredModule]:
        """The resident modules by key (a new dict)."""
        return dict(self._modules)

    @property
    def pinned_block_ids(self) -> list[int]:
        """Ids of the pinned blocks, one entry for each pin."""
        return [
            block_id
            for pins in self._pins.values()
            for module in pins.values()
            for block_id in module.block_ids
        ]

    def _lost_block(self, key: bytes) -> None:
        """A block that held the module has another use now, or is about to get one."""
        module = self._modules.get(key)
        if module is not None and not module.is_intact:
            self._forget(module)

    def _forget(self, module: StoredModule) -> None:
        del self._modules[module.key]
        self.stats.num_evictions += 1
        # What is left of it serves nobody: let the pool reuse it first.
        left = {
            block.block_id
            for block, block_hash in zip(module.blocks, module.hashes, strict=True)
            if block.block_hash == block_hash
        }
        self.block_pool.evict_blocks(left)
