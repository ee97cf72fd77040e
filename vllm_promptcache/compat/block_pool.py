"""The block pool: names of modules' blocks, and the order in which blocks are given away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vllm_promptcache.compat.wrap import wrap

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import KVCacheBlock

MODULE_HASH_PREFIX = b"prompt-module:"


def module_key_of(block: KVCacheBlock) -> bytes | None:
    """The module whose hash `block` carries, see `publish_block`; None for an ordinary block."""
    block_hash = block.block_hash
    if block_hash is None or not block_hash.startswith(MODULE_HASH_PREFIX):
        return None
    # Behind the key: the block's index and vLLM's group id, four bytes each.
    return block_hash[len(MODULE_HASH_PREFIX) : -8]


def before_allocation(block_pool: BlockPool, act: Callable[[int], None]) -> None:
    """Calls `act(num_blocks)` before the pool takes as many blocks from its free list.

    Can go when a block pool takes an eviction policy.
    """

    def get_new_blocks(original: Callable[..., Any], num_blocks: int) -> Any:
        act(num_blocks)
        return original(num_blocks)

    wrap(block_pool, "get_new_blocks", get_new_blocks)


def after_loss(block_pool: BlockPool, act: Callable[[bytes], None]) -> None:
    """Calls `act(key)` when a block has lost the hash of the module `key`.

    A block's hash is taken away alone, by the first of the methods below, whatever the reason, or
    with those of all others in a reset.
    Can go when a block pool tells what it evicts.
    """

    def remove(original: Callable[..., Any], block: KVCacheBlock) -> Any:
        key = module_key_of(block)
        removed = original(block)
        if key is not None:
            act(key)
        return removed

    def reset(original: Callable[[], bool]) -> bool:
        keys = {key for block in block_pool.blocks if (key := module_key_of(block)) is not None}
        is_reset = original()
        for key in keys if is_reset else ():
            act(key)
        return is_reset

    wrap(block_pool, "_remove_cached_block_hashes", remove)
    wrap(block_pool, "reset_prefix_cache", reset)


def first_free_block(block_pool: BlockPool) -> KVCacheBlock | None:
    """The block that the pool would hand out next; each knows the one behind it."""
    if not block_pool.get_num_free_blocks():
        return None
    return block_pool.free_block_queue.fake_free_list_head.next_free_block


def has_empty_blocks(block_pool: BlockPool, num_blocks: int) -> bool:
    """Whether the pool would hand out so many blocks without forgetting what is in them."""
    if num_blocks > block_pool.get_num_free_blocks():
        return False
    block = first_free_block(block_pool)
    for _ in range(num_blocks):
        if block is None or block.block_hash is not None:
            return False
        block = block.next_free_block
    return True


def move_in_free_list(
    block_pool: BlockPool, blocks: Sequence[KVCacheBlock], *, to_end: bool
) -> None:
    """Moves free blocks to the end of the free list, or to its head."""
    queue = block_pool.free_block_queue
    for block in blocks:
        queue.remove(block)
    (queue.append_n if to_end else queue.prepend_n)(list(blocks))


def publish_block(block_pool: BlockPool, block: KVCacheBlock, key: bytes, index: int) -> bytes:
    """Makes `block` carry the hash of block `index` of module `key`; returns the hash.

    The hash cannot be that of an ordinary block: it is longer, and starts with a prefix.
    """
    from vllm.v1.core.kv_cache_utils import BlockHash, make_block_hash_with_group_id

    name = BlockHash(MODULE_HASH_PREFIX + key + index.to_bytes(4, "big"))
    block_hash = make_block_hash_with_group_id(name, 0)
    assert block.block_hash is None, "a block that holds a module has another hash"
    block_pool._insert_block_hash(block_hash, block, num_tokens=None)
    return block_hash
