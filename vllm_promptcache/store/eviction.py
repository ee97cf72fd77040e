"""Which modules leave the KV cache when the pool is short.

vLLM hands out free blocks least recently used first, cached ones included. Before it does, the
blocks it would take are looked at here. So plain blocks and modules compete by vLLM's own rule: it
says when a module has to give way. Which one does is said by GreedyDual-Size-Frequency, or, with
`lru`, by vLLM as well. If it is another one than vLLM had come to, that one goes to the end of the
list: each pass over the list takes at least half of the idle modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vllm_promptcache.compat.block_pool import first_free_block, module_key_of, move_in_free_list
from vllm_promptcache.store.greedy_dual import GreedyDual
from vllm_promptcache.store.module_store import ModuleStore, StoredModule

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_utils import KVCacheBlock

# Modules that are gone are swept out of the ranking when there are more than others, and then some.
_MIN_SWEEP = 64


class Eviction:
    """Decides which modules leave the KV cache.

    Args:
        store: The resident modules.
        ranking: Says which module gives way; None for the one that vLLM's list has come to.
        on_evict: Called with each module that leaves, while its KV is still in its blocks.
    """

    def __init__(
        self,
        store: ModuleStore,
        ranking: GreedyDual | None,
        on_evict: Callable[[StoredModule], None] = lambda module: None,
    ) -> None:
        self._store = store
        self._ranking = ranking
        self._on_evict = on_evict

    def use(self, key: bytes) -> None:
        """Takes note that a resident module was encoded, or read by a request."""
        if self._ranking is not None and (module := self._store.lookup(key)) is not None:
            self._ranking.use(key, module.value_per_block)
            # A reset takes modules away without a word.
            if len(self._ranking) > 2 * len(self._store) + _MIN_SWEEP:
                self._ranking.keep_only(self._store.modules.keys())

    def make_room(self, num_blocks: int) -> None:
        """Prepares the head of the free list for the pool, which takes `num_blocks` from it next.

        Mutates the free list. A module is forgotten as a whole, since one lost block makes the
        others worthless; these are taken next.
        """
        if not self._store:
            return
        reached: set[bytes] = set()
        num_ready, block = 0, first_free_block(self._store.block_pool)
        while block is not None and num_ready < num_blocks:
            module = self._module_of(block)
            if module is None:
                num_ready += 1
                block = _following(block, ())
                continue
            victim = self._victim(module, reached)
            moved = () if victim is None else victim.blocks
            block = _following(block, (*module.blocks, *moved))
            if victim is not module:
                postponed = self._move(module, to_end=True)
                block = block or postponed[0]
            if victim is not None:
                num_ready += self._evict(victim)

    def _module_of(self, block: KVCacheBlock) -> StoredModule | None:
        key = module_key_of(block)
        return None if key is None else self._store.lookup(key)

    def _victim(self, module: StoredModule, reached: set[bytes]) -> StoredModule | None:
        """The module that gives way now that vLLM's list has come to `module`."""
        is_first_time = module.key not in reached
        reached.add(module.key)
        # Of a module that requests are reading only the tail is free, and would cost all of it.
        if not self._is_free(module.key):
            return None if is_first_time else module
        if self._ranking is None:
            return module
        key = self._ranking.pop_least(self._is_free)
        return module if key is None else self._store.lookup(key)

    def _is_free(self, key: bytes) -> bool:
        module = self._store.lookup(key)
        if module is None and self._ranking is not None:
            self._ranking.forget(key)  # it left with a reset
        return module is not None and all(block.ref_cnt == 0 for block in module.blocks)

    def _evict(self, module: StoredModule) -> int:
        """Forgets a module; returns how many blocks went to the head of the list."""
        self._on_evict(module)
        if self._ranking is not None:
            self._ranking.forget(module.key)
        self._store.evict(module.key)
        return len(self._move(module, to_end=False))

    def _move(self, module: StoredModule, *, to_end: bool) -> list[KVCacheBlock]:
        free = [block for block in reversed(module.blocks) if block.ref_cnt == 0]
        move_in_free_list(self._store.block_pool, free, to_end=to_end)
        return free


def _following(block: KVCacheBlock, moving: tuple[KVCacheBlock, ...]) -> KVCacheBlock | None:
    """The next free block that is not about to be moved, None at the end of the list."""
    ids = {member.block_id for member in moving}
    found = block.next_free_block
    while found is not None and found.block_id in ids:
        found = found.next_free_block
    # vLLM's list ends with a block of no pool, whose id is -1.
    return None if found is None or found.block_id < 0 else found
