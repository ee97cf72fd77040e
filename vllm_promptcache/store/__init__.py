"""Which prompt module lives in which blocks of the paged KV cache."""

from vllm_promptcache.store.module_store import ModuleStore, StoredModule, StoreStats
from vllm_promptcache.store.pins import PIN_OWNER, PinnedModule, Pins

__all__ = ["PIN_OWNER", "ModuleStore", "PinnedModule", "Pins", "StoreStats", "StoredModule"]
