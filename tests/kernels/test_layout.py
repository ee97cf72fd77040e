"""The probe finds any layout in which a slot has elements of its own, and no other."""

import pytest
import torch

from vllm_promptcache.kernels.layout import probe_slot_elements

NUM_HEADS, HEAD_SIZE, BLOCK_SIZE = 3, 4, 8


def write_rows(key, value, cache, slot_mapping):
    """`[num_blocks, num_heads, block_size, 2 * head_size]`, K and V of a slot in one row."""
    blocks, slots = slot_mapping // BLOCK_SIZE, slot_mapping % BLOCK_SIZE
    cache[blocks, :, slots, :HEAD_SIZE] = key.to(cache.dtype)
    cache[blocks, :, slots, HEAD_SIZE:] = value.to(cache.dtype)


def write_transposed(key, value, cache, slot_mapping):
    """K `[head_size, block_size]`, behind it V `[block_size, head_size]`."""
    halves = cache.view(cache.shape[0], NUM_HEADS, 2, -1)
    blocks, slots = slot_mapping // BLOCK_SIZE, slot_mapping % BLOCK_SIZE
    halves[:, :, 0].view(-1, NUM_HEADS, HEAD_SIZE, BLOCK_SIZE)[blocks, :, :, slots] = key.to(
        cache.dtype
    )
    halves[:, :, 1].view(-1, NUM_HEADS, BLOCK_SIZE, HEAD_SIZE)[blocks, :, slots] = value.to(
        cache.dtype
    )


def write_summed(key, value, cache, slot_mapping):
    """No slot layout at all: all slots of a block end up in one."""
    cache[slot_mapping // BLOCK_SIZE, :, 0, :HEAD_SIZE] += key


def new_cache(dtype=torch.float32):
    return torch.full((4, NUM_HEADS, BLOCK_SIZE, 2 * HEAD_SIZE), torch.nan, dtype=dtype)


@pytest.mark.parametrize("write", [write_rows, write_transposed])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn]
)
def test_elements_of_a_slot_are_what_the_backend_writes_to_it(write, dtype):
    elements = probe_slot_elements(write, new_cache(dtype), NUM_HEADS, HEAD_SIZE)
    assert elements.shape == (2 * NUM_HEADS * HEAD_SIZE, BLOCK_SIZE)
    cache = torch.zeros_like(new_cache(dtype))
    key, value = torch.randn(2, 1, NUM_HEADS, HEAD_SIZE).to(dtype)
    write(key, value, cache, torch.tensor([2 * BLOCK_SIZE + 5]))
    expected = torch.cat([key.flatten(), value.flatten()])
    assert torch.equal(cache[2].flatten()[elements[:, 5]], expected)


@pytest.mark.parametrize("scale", [0.003, 1.0, 40.0])
def test_of_8_bit_floats_the_scale_is_of_no_matter(scale):
    def write(key, value, cache, slot_mapping):
        floats = cache.view(torch.float8_e4m3fn)
        scaled = ((kv / scale).clamp(-448, 448) for kv in (key.float(), 7 * value.float()))
        write_transposed(*scaled, floats, slot_mapping)

    elements = probe_slot_elements(write, new_cache().to(torch.uint8), NUM_HEADS, HEAD_SIZE)
    expected = probe_slot_elements(write_transposed, new_cache(), NUM_HEADS, HEAD_SIZE)
    assert torch.equal(elements, expected)


def test_probing_leaves_the_cache_alone():
    cache = torch.ones_like(new_cache())
    probe_slot_elements(write_rows, cache, NUM_HEADS, HEAD_SIZE)
    assert torch.equal(cache, torch.ones_like(cache))


def test_a_layout_that_mixes_slots_is_refused():
    with pytest.raises(ValueError, match="not one slot after another"):
        probe_slot_elements(write_summed, new_cache(), NUM_HEADS, HEAD_SIZE)
