"""Slot copies in Triton.

Tested against the plain version under Triton's interpreter only: nothing here has run on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from vllm_promptcache.kernels.block_rows import BlockRows
from vllm_promptcache.kernels.reference import Slots
from vllm_promptcache.kernels.transfers import to_device

# Elements that one program moves.
_WIDTH = 512
# Elements that are kept between reading and writing, unless those of one layer are more.
_NUM_KEPT = 1 << 24


@dataclass(frozen=True, slots=True)
class SlotTable:
    """Where the slots of all layers are in memory; made once.

    Attributes:
        layers: Address of each layer's first block, int64 `[num_layers]`.
        dtype: Of the bits that are moved.
        block_stride: Elements from a block to the next one.
        elements: Where in a block those of each slot are, int64 `[block_size, num_elements]`.
    """

    layers: torch.Tensor
    dtype: torch.dtype
    block_stride: int
    elements: torch.Tensor

    @classmethod
    def of(cls, layers: list[BlockRows], slot_elements: torch.Tensor) -> SlotTable:
        """Makes the table of `layers`, all alike, whose memory has to outlive it.

        Args:
            layers: Bits, as integers.
            slot_elements: `[num_elements, block_size]`, on the same device.
        """
        rows = layers[0].rows
        addresses = torch.tensor([layer.rows.data_ptr() for layer in layers], device=rows.device)
        return cls(addresses, rows.dtype, layers[0].block_stride, slot_elements.T.contiguous())


def copy_slots_triton(table: SlotTable, source: Slots, target: Slots) -> None:
    """Copies slots in all layers; see `SlotCopier.copy`. Mutates the layers.

    Args:
        table: Of the layers.
        source: Slots to read, `[num_tokens]`.
        target: Slots to write, likewise; all different.
    """
    block_size, num_elements = table.elements.shape
    num_layers, num_kept = len(table.layers), len(source) * num_elements
    # All layers at once, but for long copies: what is kept in between is bounded.
    step = min(num_layers, max(1, _NUM_KEPT // max(1, num_kept)))
    slots = to_device(np.stack([source, target]), table.layers.device)
    scratch = torch.empty(step * num_kept, dtype=table.dtype, device=slots.device)
    shape = table.block_stride, num_elements, block_size, _WIDTH
    for first in range(0, num_layers, step):
        grid = len(source), triton.cdiv(num_elements, _WIDTH), min(step, num_layers - first)
        # Two launches: all sources are to be read before any target is written.
        for is_read in (True, False):
            _transfer[grid](
                scratch, table.layers, first, slots, table.elements, *shape, is_read=is_read
            )


# The layer changes from launch to launch: no variant of the kernel is compiled for some of them.
@triton.jit(do_not_specialize=["first"])
def _transfer(  # type: ignore[no-untyped-def]
    scratch,
    layers,
    first,
    slots,
    elements,
    block_stride,
    num_elements,
    block_size,
    width: tl.constexpr,
    is_read: tl.constexpr,
):
    """Reads some elements of one slot of a layer into the scratch memory, or writes them back."""
    token, num_tokens = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    element = tl.program_id(1) * width + tl.arange(0, width)
    layer = tl.program_id(2).to(tl.int64)
    mask = element < num_elements
    # Sources, then targets.
    slot = tl.load(slots + token) if is_read else tl.load(slots + num_tokens + token)
    inside = tl.load(elements + slot % block_size * num_elements + element, mask=mask)
    kept = scratch + (layer * num_tokens + token) * num_elements + element
    block = tl.load(layers + first + layer).to(scratch.dtype) + slot // block_size * block_stride
    if is_read:
        tl.store(kept, tl.load(block + inside, mask=mask), mask=mask)
    else:
        tl.store(block + inside, tl.load(kept, mask=mask), mask=mask)
