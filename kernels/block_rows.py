"""A layer's blocks as rows in the order of memory: nothing else knows strides.

vLLM gives a layer's KV cache as `[num_blocks, num_heads, num_slots, content]`, whatever lies beside
what in memory. Inside a block the heads may come before its slots or behind them; between two
blocks there may be padding, or blocks of other layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class BlockRows:
    """The blocks of one layer.

    Attributes:
        rows: `[num_blocks, block_elements]`, a view of the layer's KV cache: each block's elements
            as they lie in memory.
    """

    rows: torch.Tensor

    @classmethod
    def of(cls, kv_cache: torch.Tensor, block_elements: int) -> BlockRows:
        """Finds the blocks of a layer; copies nothing.

        Args:
            kv_cache: KV cache of the layer, `[num_blocks, ...]`.
            block_elements: Elements of a block. Those of several of `kv_cache`'s blocks, where the
                attention backend's are smaller (vLLM's kernel blocks): a block is then as many of
                them as it takes, one after the other.

        Raises:
            ValueError: A block is not one run of memory.
        """
        inside = sorted(range(1, kv_cache.dim()), key=kv_cache.stride, reverse=True)
        blocks = kv_cache.permute(0, *inside)
        if not blocks[0].is_contiguous():
            raise ValueError(
                f"blocks of shape {tuple(kv_cache.shape[1:])} and strides {kv_cache.stride()[1:]} "
                "are not one run of memory each: set VLLM_KV_CACHE_LAYOUT to LBNHC, LBHNC, BLNHC "
                "or BLHNC, whichever the attention backend takes"
            )
        return cls(_merged(blocks.flatten(1), block_elements))

    @classmethod
    def of_layers(cls, kv_caches: Iterable[torch.Tensor], block_elements: int) -> list[BlockRows]:
        """Finds the blocks of all layers, which have to be alike; see `of`.

        Raises:
            ValueError: A block is not one run of memory, layers differ in type, shape or strides,
                or two of them are the same memory.
        """
        kv_caches = list(kv_caches)
        if len(forms := {(str(c.dtype), tuple(c.shape), c.stride()) for c in kv_caches}) > 1:
            raise ValueError(f"layers are not alike in type, shape and strides: {sorted(forms)}")
        if len({kv_cache.data_ptr() for kv_cache in kv_caches}) < len(kv_caches):
            raise ValueError("some layers have the KV cache of others: it would be changed twice")
        return [cls.of(kv_cache, block_elements) for kv_cache in kv_caches]

    @property
    def block_stride(self) -> int:
        """Elements from the beginning of a block to that of the next one."""
        return self.rows.stride(0)

    @property
    def memory(self) -> torch.Tensor:
        """All from the first block's beginning to the last one's end, `[num_elements]`; a view."""
        num_elements = (len(self.rows) - 1) * self.block_stride + self.rows.shape[1]
        return self.rows.as_strided((num_elements,), (1,))


def empty_blocks(like: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """A KV cache with a few blocks of zeros, of the same strides as another layer's.

    Raises:
        ValueError: See `BlockRows.of`.
    """
    block_elements = like[0].numel()
    block_stride = BlockRows.of(like, block_elements).block_stride
    memory = like.new_zeros((num_blocks - 1) * block_stride + block_elements)
    return memory.as_strided((num_blocks, *like.shape[1:]), like.stride())


def _merged(rows: torch.Tensor, block_elements: int) -> torch.Tensor:
    """Rows of so many elements, each made of rows that follow one another in memory."""
    row_elements = rows.shape[1]
    if row_elements == block_elements:
        return rows
    if block_elements % row_elements or not rows.is_contiguous():
        raise ValueError(
            f"a block of {block_elements} elements is not a run of the attention backend's, which "
            f"have {row_elements} and begin {rows.stride(0)} apart: set --block-size to what the "
            "backend takes"
        )
    return rows.view(-1, block_elements)
