"""Slot copies in Triton.

Tested against the plain version under Triton's interpreter only: nothing here has run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vllm_promptcache.kernels.reference import Slots

# Elements that one program moves.
_WIDTH = 512


def copy_slots_triton(
    layers_bits: list[torch.Tensor], slot_elements: torch.Tensor, source: Slots, target: Slots
) -> None:
    """Copies slots in all layers; see `SlotCopier.copy`. Mutates the layers.

    Args:
        layers_bits: Bits of each layer's blocks, integers `[num_blocks, block_elements]`.
        slot_elements: `[num_elements, block_size]`, on the same device.
        source: Slots to read, `[num_tokens]`.
        target: Slots to write, likewise; all different.
    """
    num_elements, block_size = slot_elements.shape
    device = slot_elements.device
    read, write = (torch.from_numpy(slots).to(device) for slots in (source, target))
    scratch = layers_bits[0].new_empty(len(read), num_elements)
    grid = (len(read), triton.cdiv(num_elements, _WIDTH))
    elements = slot_elements.contiguous()
    for layer in layers_bits:
        shape = layer.shape[1], num_elements, block_size, _WIDTH
        # Two launches: all sources are to be read before any target is written.
        _transfer[grid](scratch, layer, read, elements, *shape, to_scratch=True)
        _transfer[grid](scratch, layer, write, elements, *shape, to_scratch=False)


@triton.jit
def _transfer(  # type: ignore[no-untyped-def]
    scratch,
    layer,
    slots,
    elements,
    block_elements,
    num_elements,
    block_size,
    width: tl.constexpr,
    to_scratch: tl.constexpr,
):
    """Reads some elements of one slot of a layer into the scratch memory, or writes them back."""
    token = tl.program_id(0).to(tl.int64)
    element = tl.program_id(1) * width + tl.arange(0, width)
    mask = element < num_elements
    slot = tl.load(slots + token)
    inside = tl.load(elements + element * block_size + slot % block_size, mask=mask)
    kept = scratch + token * num_elements + element
    place = layer + slot // block_size * block_elements + inside
    if to_scratch:
        tl.store(kept, tl.load(place, mask=mask), mask=mask)
    else:
        tl.store(place, tl.load(kept, mask=mask), mask=mask)
