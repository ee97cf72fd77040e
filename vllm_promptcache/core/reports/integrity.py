"""A walk over module store, pins and block pool that proves their books agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from vllm.v1.core.kv_cache_utils import KVCacheBlock, make_block_hash_with_group_id
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_promptcache.compat.block_pool import MODULE_HASH_PREFIX
from vllm_promptcache.core.mapping import shared_blocks
from vllm_promptcache.core.request import EncodeRequest, ModularRequest
from vllm_promptcache.core.residency import ModuleResidency
from vllm_promptcache.store import PIN_OWNER, StoredModule


def check_integrity(scheduler: Scheduler, residency: ModuleResidency) -> None:
    """Checks the invariants that the scheduler can see.

    Meant for tests and debugging: it walks all blocks, and mutates nothing.

    Raises:
        AssertionError: An invariant is violated.
    """
    _check_store(scheduler, residency)
    _check_reference_counts(scheduler, residency)
    _check_requests(scheduler, residency)


def _check_store(scheduler: Scheduler, residency: ModuleResidency) -> None:
    modules = residency.store.modules.values()
    block_ids = [block_id for module in modules for block_id in module.block_ids]
    assert len(block_ids) == len(set(block_ids)), "two modules share a block"
    for module in modules:
        num_blocks = -(-module.num_tokens // scheduler.block_size)
        assert len(module.blocks) == num_blocks, "a module has too few or too many blocks"
        assert module.is_intact, "a module lost a block that the store believes in"
    own = set(block_ids)
    for block in scheduler.kv_cache_manager.block_pool.blocks:
        is_published = (block.block_hash or b"").startswith(MODULE_HASH_PREFIX)
        assert is_published == (block.block_id in own), "a stray block carries a module's hash"


def _check_reference_counts(scheduler: Scheduler, residency: ModuleResidency) -> None:
    manager = scheduler.kv_cache_manager
    counts = Counter(residency.store.pinned_block_ids)
    for request_id in scheduler.requests:
        counts.update(manager.get_block_ids(request_id)[0])
    for _, blocks in scheduler.deferred_frees:
        counts.update(block.block_id for block in blocks)
    pool = manager.block_pool
    for block in pool.blocks:
        if not block.is_null:
            assert block.ref_cnt == counts[block.block_id], f"wrong ref count: {block}"
    pins = residency.pins
    held = residency.store.held(PIN_OWNER)
    assert all(key in pins for key in held), "a module is pinned for nobody"
    num_free = sum(block.ref_cnt == 0 for block in pool.blocks if not block.is_null)
    assert pool.get_num_free_blocks() == num_free, "the free list has lost or gained blocks"


def _check_requests(scheduler: Scheduler, residency: ModuleResidency) -> None:
    manager = scheduler.kv_cache_manager
    for request in scheduler.running:
        modular = residency.get(request)
        if modular is None:
            continue
        blocks = manager.get_blocks(request.request_id).blocks[0]
        num_shared, expected = modular.table.num_shared_blocks, shared_blocks(modular)
        hashes = dict(pair for _, module in modular.mapped or () for pair in _hashes(module))
        assert len(expected) == num_shared, "a mapped block is missing"
        for block, mapped in zip(blocks, expected, strict=False):
            # No hash: the module lost its tail, which nobody holds, and was forgotten.
            assert block is mapped, "a mapped block was exchanged"
            expected_hash = hashes[block.block_id]
            assert block.block_hash in (None, expected_hash), "a mapped block changed hands"
        own = blocks[num_shared:]
        _check_private(modular, own)
    for modular in residency.requests.values():
        assert modular.request_id in scheduler.requests, "a request was forgotten"
        if isinstance(modular, EncodeRequest):
            assert modular.key in residency.encodes, "an encode was forgotten"


def _hashes(module: StoredModule) -> Iterator[tuple[int, bytes]]:
    return zip(module.block_ids, module.hashes, strict=True)


def _check_private(modular: ModularRequest, blocks: list[KVCacheBlock]) -> None:
    """No private block carries a hash that is not of the request's own chain."""
    chain = {make_block_hash_with_group_id(name, 0) for name in modular.request.block_hashes}
    hashes = {block.block_hash for block in blocks} - {None}
    assert hashes <= chain, "private KV was published under a foreign hash"
