"""Rotation of keys in Triton.

Tested against the plain version under Triton's interpreter only: nothing here has run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vllm_promptcache.kernels.rotation import Rotation


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
        width=triton.next_power_of_2(num_pairs),
    )
    return rotated


@triton.jit
def _rotate(  # type: ignore[no-untyped-def]
    keys, cos, sin, num_heads, head_size, num_pairs, is_neox: tl.constexpr, width: tl.constexpr
):
    """One head of one token."""
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
    tl.store(first, (x * c - y * s).to(keys.dtype.element_ty), mask=mask)
    tl.store(second, (y * c + x * s).to(keys.dtype.element_ty), mask=mask)
