"""Where the KV of a slot lies inside a block: found by probing the backend, not assumed.

Backends store K and V of a block in their own order (vLLM's CPU kernels keep K transposed, others
pack pairs for AMX). All that a copy needs to know is which elements of a block belong to which of
its slots.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from vllm_promptcache.kernels.block_rows import BlockRows, empty_blocks

WriteKV = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]


def probe_slot_elements(
    write_kv: WriteKV, kv_cache: torch.Tensor, num_kv_heads: int, head_size: int
) -> torch.Tensor:
    """Finds the elements of a block that belong to each of its slots.

    Args:
        write_kv: The backend's own writer, called as `(key, value, kv_cache, slot_mapping)` with
            key and value `[num_tokens, num_kv_heads, head_size]`.
        kv_cache: KV cache of one layer, `[num_blocks, ...]`; not changed.
        num_kv_heads: KV heads of the layer.
        head_size: Elements of one head of K, and of V.

    Returns:
        `[2 * num_kv_heads * head_size, block_size]` int64: for each element of a token (K, then
        V) and each slot, its index in the block's row of `BlockRows`.

    Raises:
        ValueError: A block is not one run of memory, or the backend does not give each of its slots
            elements of its own.
    """
    num_elements = kv_cache[0].numel()
    if num_elements % (2 * num_kv_heads * head_size):
        raise ValueError("the attention backend's blocks hold more than keys and values")
    token_shape = (2, num_kv_heads, head_size)
    slot_ids = torch.arange(num_elements).view(-1, *token_shape)
    # Each element is written with its own number, bit by bit, and then found by it.
    found = torch.zeros(num_elements, dtype=torch.int64)
    for power in range((num_elements - 1).bit_length()):
        found += _write_block(write_kv, kv_cache, slot_ids >> power & 1).long() << power
    elements = torch.argsort(found)
    if not torch.equal(found[elements], torch.arange(num_elements)):
        raise ValueError("the attention backend's KV cache layout is not one slot after another")
    return elements.view(len(slot_ids), -1).T.contiguous()


def slot_elements_of(blocks: torch.Tensor, block_size: int) -> torch.Tensor:
    """What `probe_slot_elements` has found, for blocks that are made of the backend's.

    Args:
        blocks: `[num_elements, slots]` of one of the backend's (vLLM's kernel blocks).
        block_size: Slots of a block.

    Returns:
        `[num_elements, block_size]`.

    Raises:
        ValueError: A block is not made of whole ones of the backend's.
    """
    num_each, rest = divmod(block_size, blocks.shape[1])
    if rest or not num_each:
        raise ValueError(
            f"blocks of {block_size} slots are not made of the attention backend's, which have "
            f"{blocks.shape[1]}: set --block-size to a multiple of that"
        )
    starts = torch.arange(num_each) * blocks.numel()
    return (blocks[:, None] + starts[:, None]).flatten(1)


def _write_block(write_kv: WriteKV, like: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Writes zeros and ones to the second block of a small cache like `like`.

    Returns:
        Which elements of the block are not zero: true of any type and scale of 8-bit floats.
    """
    block_size, device = len(bits), like.device
    cache = empty_blocks(like, 2)
    # What is quantized comes in a type that models compute in.
    dtype = torch.bfloat16 if like.element_size() == 1 else like.dtype
    key, value = bits.to(device, dtype).unbind(dim=1)
    slot_mapping = torch.arange(block_size, 2 * block_size, device=device)
    write_kv(key.contiguous(), value.contiguous(), cache, slot_mapping)
    return (BlockRows.of(cache, like[0].numel()).rows[1] != 0).cpu()
