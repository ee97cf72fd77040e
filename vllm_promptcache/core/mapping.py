"""Which blocks a request shares: those of its modules, and what others left behind them."""

from __future__ import annotations

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlock

from vllm_promptcache.core.request import ModularRequest
from vllm_promptcache.errors import PlanError
from vllm_promptcache.store import ModuleStore


def map_blocks(
    modular: ModularRequest, store: ModuleStore, pool: BlockPool
) -> list[KVCacheBlock] | None:
    """Returns the blocks that a request shares, or None if a module is missing.

    The full blocks of its modules, then private blocks of an earlier request that began with the
    same modules and text. References none of them. Sets `modular.mapped` and
    `modular.num_private_hits`.

    Raises:
        PlanError: A span does not fit its module.
    """
    modular.mapped, modular.num_private_hits = None, 0
    mapped = []
    for span, key in modular.span_keys():
        if (module := store.lookup(key)) is None:
            return None
        if module.num_tokens != span.num_module_tokens:
            raise PlanError("malformed prompt plan: a span does not fit")
        mapped.append((span, module))
    modular.mapped = mapped
    private = _private_hits(modular, pool)
    modular.num_private_hits = len(private)
    shared = [
        block
        for span, module in mapped
        for blocks in span.full_blocks(modular.block_size)
        for block in module.blocks[blocks.start : blocks.end]
    ]
    return shared + private


def _private_hits(modular: ModularRequest, pool: BlockPool) -> list[KVCacheBlock]:
    hits: list[KVCacheBlock] = []
    if not modular.reads_private_blocks:
        return hits
    # Logits need at least one token that is computed.
    last = (modular.request.num_tokens - 1) // modular.block_size
    for block_hash in modular.request.block_hashes[modular.num_shared_blocks : last]:
        if (found := pool.get_cached_block(block_hash, [0])) is None:
            break
        hits += found
    # All tails are copied, or none.
    return hits if len(hits) * modular.block_size >= modular.num_ordered_tokens else []
