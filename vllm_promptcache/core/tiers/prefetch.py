"""Modules that are brought back before a request asks for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice

from vllm_promptcache.compat.block_pool import has_empty_blocks
from vllm_promptcache.core.tiers.tiers import ModuleTiers
from vllm_promptcache.store import ModuleStore

# Most modules that are waited for at once; of older ones nothing has come of.
MAX_NUM_WANTED = 256
# Copies of more would keep the step's requests waiting.
MAX_NUM_A_STEP = 4


class Prefetch:
    """Brings back the siblings of modules that are in use, from host memory or disk.

    They get blocks that hold nothing, so that no module and no plain block leaves for them. A
    sibling that is nowhere is left alone: it costs nothing to know, and may never be used.

    Args:
        store: The resident modules.
        tiers: Where others may be.
        is_on: Whether siblings are to be taken note of.
    """

    def __init__(self, store: ModuleStore, tiers: ModuleTiers, *, is_on: bool) -> None:
        self.is_on = is_on
        self._store = store
        self._tiers = tiers
        # An ordered set: the oldest first.
        self._wanted: dict[bytes, None] = {}

    @property
    def wanted(self) -> Collection[bytes]:
        """Modules that are to come back."""
        return self._wanted.keys()

    def want(self, keys: Iterable[bytes]) -> None:
        """Takes note of modules that may be read soon."""
        self._wanted.update((key, None) for key in keys if self._is_away(key))
        for key in list(self._wanted)[:-MAX_NUM_WANTED]:
            del self._wanted[key]

    def advance(self) -> None:
        """Brings back some of them, if there is room; to be called once a step."""
        if self._wanted and not has_empty_blocks(self._store.block_pool, 1):
            self._wanted.clear()
        for key in list(islice(self._wanted, MAX_NUM_A_STEP)):
            if not self._is_away(key) or self._bring_back(key):
                del self._wanted[key]

    def _is_away(self, key: bytes) -> bool:
        return self._store.lookup(key) is None and self._tiers.may_have(key)

    def _bring_back(self, key: bytes) -> bool:
        if self._tiers.bring_back(key, evicting=False) is None:
            return False
        self._store.stats.num_prefetches += 1
        return True
