"""Triton kernels under the interpreter, against the plain versions; `test_triton.py` runs this.

pytest does not collect it on its own: Triton has to be imported with TRITON_INTERPRET=1.
"""

import pytest
import torch

from vllm_promptcache.kernels.gpu import TritonSlotCopier
from vllm_promptcache.kernels.reference import SlotCopier
from vllm_promptcache.kernels.rotate_keys import rotate_keys_triton
from vllm_promptcache.kernels.rotation import rotate_keys

from .test_copy_slots import caches, copies
from .test_layout import HEAD_SIZE, write_rows, write_transposed
from .test_rotate_blocks import SOURCE, TARGET, random_rotation, slot_elements

# Head sizes and rotary dimensions, the last two for partial rotary embeddings.
SIZES = [(64, 64), (80, 80), (96, 96), (128, 128), (80, 32), (96, 24)]


@pytest.mark.parametrize(("head_size", "rotary_dim"), SIZES)
@pytest.mark.parametrize("num_tokens", [1, 7])
@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_keys_are_rotated_as_in_plain_torch(head_size, rotary_dim, num_tokens, is_neox, dtype):
    keys = torch.randn(num_tokens, 3, head_size).to(dtype)
    before, rotation = keys.clone(), random_rotation(num_tokens, rotary_dim, is_neox)
    expected = rotate_keys(keys, rotation)
    if dtype == torch.bfloat16:
        # The interpreter cuts off what a GPU would round.
        bits = rotate_keys(keys.float(), rotation).view(torch.int32) >> 16
        expected = bits.to(torch.int16).view(dtype)
    assert torch.equal(rotate_keys_triton(keys, rotation), expected)
    assert torch.equal(keys, before)


def test_keys_may_be_a_view():
    keys, rotation = torch.randn(80, 5, 3).permute(1, 2, 0), random_rotation(5, 80)
    assert torch.equal(rotate_keys_triton(keys, rotation), rotate_keys(keys, rotation))


@pytest.mark.parametrize("write", [write_rows, write_transposed])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("source", "target"), list(copies()))
def test_slots_are_copied_as_in_plain_torch(write, dtype, source, target):
    expected, actual = caches(dtype), caches(dtype)
    elements = slot_elements(write, dtype)
    SlotCopier(expected, elements).copy(source, target)
    TritonSlotCopier(actual, elements).copy(source, target)
    assert all(map(torch.equal, expected, actual))


@pytest.mark.parametrize("write", [write_rows, write_transposed])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_module_is_relocated_as_in_plain_torch(write, dtype):
    expected, actual = caches(dtype), caches(dtype)
    elements, rotation = slot_elements(write, dtype), random_rotation(19)
    for copier in (SlotCopier(expected, elements), TritonSlotCopier(actual, elements)):
        copier.rotate_blocks(SOURCE, TARGET, rotation, head_size=HEAD_SIZE)
    assert all(map(torch.equal, expected, actual))
