"""Which prompt module lives in which blocks of the paged KV cache."""

from vllm_promptcache.store.disk_tier import DiskTier, ReadModule
from vllm_promptcache.store.eviction import Eviction
from vllm_promptcache.store.greedy_dual import GreedyDual
from vllm_promptcache.store.host_tier import HostModule, HostTier
from vllm_promptcache.store.module_store import ModuleStore, StoredModule, StoreStats
from vllm_promptcache.store.pins import PIN_OWNER, PinnedModule, Pins

__all__ = [
    "PIN_OWNER",
    "DiskTier",
    "Eviction",
    "GreedyDual",
    "HostModule",
    "HostTier",
    "ModuleStore",
    "PinnedModule",
    "Pins",
    "ReadModule",
    "StoreStats",
    "StoredModule",
]
