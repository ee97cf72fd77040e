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
    return shared_blocks(modular) + private


def shared_blocks(modular: ModularRequest) -> list[KVCacheBlock]:
    """The blocks of a request's modules that it maps by reference, in the order of its table."""
    modules, size = modular.mapped or (), modular.table.block_size
    return [
        block
        for part in modular.table.shared
        for block in modules[part.span][1].blocks[part.kept.start // size : part.kept.end // size]
    ]


def _private_hits(modular: ModularRequest, pool: BlockPool) -> list[KVCacheBlock]:
    hits: list[KVCacheBlock] = []
    if not modular.reads_private_blocks:
        return hits
    request, table = modular.request, modular.table
    # Logits need at least one token that is computed.
    last = (request.num_tokens - 1) // table.block_size
    for block_hash in request.block_hashes[table.num_shared_blocks : last]:
        if (found := pool.get_cached_block(block_hash, [0])) is None:
            break
        hits += found
    # All tails are copied, or none; so it is with new tokens among them.
    num_tokens = table.num_tail_tokens + table.num_inner_tokens
    return hits if len(hits) * table.block_size >= num_tokens else []
