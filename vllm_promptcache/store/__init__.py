"""Which prompt module lives in which blocks of the paged KV cache."""

from vllm_promptcache.store.module_store import ModuleStore, StoredModule, StoreStats

__all__ = ["ModuleStore", "StoreStats", "StoredModule"]
