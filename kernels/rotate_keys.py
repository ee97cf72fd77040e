"""Rotation of keys in Triton.

Tested against the plain version under Triton's interpreter only: nothing here has run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vllm_promptcache.kernels.rotation import Rotation, largest_of


def rotate_keys_triton(keys: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """See `rotation.rotate_keys`; the rotation is on the device of the keys.

    A GPU may fuse multiplication and addition, so that results can differ by one rounding.
    """
    rotated = keys.clone(memory_format=torch.contiguous_format)
    num_tokens, num_heads, head_size = keys.shape
    num_pairs = rotation.cos.shape[1]
    _rotate[(num_tokens * num_heads,)](
        rotated,
        rotation.cos.contiguous(),
        rotation.sin.contiguous(),
        num_heads,
        head_size,
        num_pairs,
        is_neox=rotation.is_neox,
        largest=largest_of(keys.dtype),
        width=triton.next_power_of_2(num_pairs),
    )
    return rotated


@triton.jit
def _rotate(  # type: ignore[no-untyped-def]
    keys,
    cos,
    sin,
    num_heads,
    head_size,
    num_pairs,
    is_neox: tl.constexpr,
    largest: tl.constexpr,
    width: tl.constexpr,
):
    """One head of one token; see `largest_of`."""
    head = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, width)
    mask = pair < num_pairs
    if is_neox:
        first = keys + head * head_size + pair
        second = first + num_pairs
    else:
        first = keys + head * head_size + 2 * pair
        second = first + 1
    x = tl.load(first, mask=mask).to(tl.float32)
    y = tl.load(second, mask=mask).to(tl.float32)
    c = tl.load(cos + head // num_heads * num_pairs + pair, mask=mask)
    s = tl.load(sin + head // num_heads * num_pairs + pair, mask=mask)
    new_x, new_y = x * c - y * s, y * c + x * s
    if largest is not None:
        new_x = tl.clamp(new_x, -largest, largest)
        new_y = tl.clamp(new_y, -largest, largest)
    tl.store(first, new_x.to(keys.dtype.element_ty), mask=mask)
    tl.store(second, new_y.to(keys.dtype.element_ty), mask=mask)
