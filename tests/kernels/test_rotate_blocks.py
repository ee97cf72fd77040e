"""Relocation of blocks: the plain path against single keys, and the CPU kernel against it."""

import pytest
import torch

from vllm_promptcache.kernels.copier import make_slot_copier
from vllm_promptcache.kernels.layout import probe_slot_elements
from vllm_promptcache.kernels.reference import SlotCopier
from vllm_promptcache.kernels.rotation import Rotation, rotate_keys

from .test_copy_slots import NUM_BLOCKS, caches
from .test_layout import BLOCK_SIZE, HEAD_SIZE, NUM_HEADS, write_rows, write_transposed

NUM_KEY_ELEMENTS = NUM_HEADS * HEAD_SIZE
SOURCE, TARGET = [3, 1, 6], [5, 8, 2]
LENGTHS = [17, 23, 24]  # all need three blocks
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn]


def random_rotation(num_tokens, rotary_dim=HEAD_SIZE, is_neox=True):
    angles = torch.randn(num_tokens, rotary_dim // 2, generator=torch.Generator().manual_seed(1))
    return Rotation(angles.cos(), angles.sin(), is_neox)


def slot_elements(write, dtype):
    return probe_slot_elements(write, caches(dtype)[0], NUM_HEADS, HEAD_SIZE)


def module(layer, elements, block_ids, num_tokens):
    """K and V of a module's tokens, `[num_tokens, num_heads, head_size]` each."""
    slots = layer.view(NUM_BLOCKS, -1)[block_ids][:, elements.T].flatten(0, 1)[:num_tokens]
    return slots.view(num_tokens, 2, NUM_HEADS, HEAD_SIZE).unbind(dim=1)


@pytest.mark.parametrize("write", [write_rows, write_transposed])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", LENGTHS)
@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("rotary_dim", [HEAD_SIZE, HEAD_SIZE - 2])
@pytest.mark.parametrize("target", [TARGET, SOURCE])
def test_a_module_is_copied_with_its_keys_turned(
    write, dtype, num_tokens, is_neox, rotary_dim, target
):
    elements, rotation = (
        slot_elements(write, dtype),
        random_rotation(num_tokens, rotary_dim, is_neox),
    )
    before, plain, fast = caches(dtype), caches(dtype), caches(dtype)
    SlotCopier(plain, elements).rotate_blocks(SOURCE, target, rotation, head_size=HEAD_SIZE)
    make_slot_copier(fast, elements).rotate_blocks(SOURCE, target, rotation, head_size=HEAD_SIZE)
    for old, expected, actual in zip(before, plain, fast, strict=True):
        old_keys, old_values = module(old, elements, SOURCE, num_tokens)
        for layer in (expected, actual):
            keys, values = module(layer, elements, target, num_tokens)
            assert torch.equal(keys, rotate_keys(old_keys, rotation))
            assert torch.equal(values, old_values)
            others = [i for i in range(NUM_BLOCKS) if i not in target]
            assert torch.equal(layer[others], old[others])


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_copied_bit_by_bit(dtype):
    kv_caches, elements = caches(dtype), slot_elements(write_transposed, dtype)
    bits = kv_caches[0].view(torch.int8).view(NUM_BLOCKS, -1)
    bits[3] = torch.arange(bits.shape[1], dtype=torch.int64).to(torch.int8)
    rotation = random_rotation(BLOCK_SIZE)
    make_slot_copier(kv_caches, elements).rotate_blocks([3], [5], rotation, head_size=HEAD_SIZE)
    old, new = (module(kv_caches[0], elements, [i], BLOCK_SIZE)[1] for i in (3, 5))
    assert torch.equal(old.contiguous().view(torch.int8), new.contiguous().view(torch.int8))


def test_a_key_that_is_not_a_number_stays_so():
    kv_caches, elements = caches(torch.bfloat16), slot_elements(write_transposed, torch.bfloat16)
    kv_caches[0][3] = torch.nan
    rotation = random_rotation(BLOCK_SIZE)
    make_slot_copier(kv_caches, elements).rotate_blocks([3], [5], rotation, head_size=HEAD_SIZE)
    assert kv_caches[0][5].isnan().all()


def test_quantized_keys_are_refused():
    kv_caches = [torch.zeros(NUM_BLOCKS, NUM_HEADS, BLOCK_SIZE, 2 * HEAD_SIZE, dtype=torch.uint8)]
    copier = make_slot_copier(kv_caches, slot_elements(write_transposed, torch.float32))
    with pytest.raises(ValueError, match="uint8 cannot be rotated"):
        copier.rotate_blocks([3], [5], random_rotation(BLOCK_SIZE), head_size=HEAD_SIZE)


def test_the_cpu_kernel_needs_as_many_targets_as_sources():
    copier = make_slot_copier(caches(torch.float32), slot_elements(write_transposed, torch.float32))
    with pytest.raises(ValueError, match="inhomogeneous"):
        copier.rotate_blocks([3, 4], [5], random_rotation(BLOCK_SIZE + 1), head_size=HEAD_SIZE)
