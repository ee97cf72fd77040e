"""Slot copies: the CPU kernel against the plain one, and the plain one against the layout."""

import numpy as np
import pytest
import torch

from vllm_promptcache.kernels.copier import make_slot_copier
from vllm_promptcache.kernels.layout import probe_slot_elements
from vllm_promptcache.kernels.reference import SlotCopier

from .test_layout import BLOCK_SIZE, HEAD_SIZE, NUM_HEADS, write_rows, write_transposed

NUM_BLOCKS = 9


def caches(dtype, num_layers=2):
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_BLOCKS, NUM_HEADS, BLOCK_SIZE, 2 * HEAD_SIZE)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(num_layers)]


def copies():
    """Random copies of odd lengths, and the ones that go wrong easily."""
    rng = np.random.default_rng(0)
    slots = np.arange(NUM_BLOCKS * BLOCK_SIZE)
    for num_tokens in (1, 3, 7, 8, 9, 23):
        yield rng.choice(slots, num_tokens), rng.choice(slots, num_tokens, replace=False)
    yield np.arange(20, 41), np.arange(18, 39)  # to the front, in place
    yield np.array([8, 9, 16]), np.array([16, 17, 9])  # a target is another one's source
    yield np.repeat(np.int64(30), 5), np.arange(40, 45)


@pytest.mark.parametrize("write", [write_rows, write_transposed])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("source", "target"), list(copies()))
def test_cpu_copy_equals_the_reference(write, dtype, source, target):
    # Not at the top: an engine that starts in a process with numba's llvmlite loaded trips over
    # it (vLLM 0.32 looks into all loaded modules), and pytest may collect this file for one.
    from vllm_promptcache.kernels.cpu import CPUSlotCopier

    elements = probe_slot_elements(write, caches(dtype)[0], NUM_HEADS, HEAD_SIZE)
    expected, actual = caches(dtype), caches(dtype)
    SlotCopier(expected, elements).copy(source, target)
    CPUSlotCopier(actual, elements).copy(source, target)
    assert all(map(torch.equal, expected, actual))


def test_a_copy_moves_whole_slots_and_nothing_else():
    elements = probe_slot_elements(write_transposed, caches(torch.float32)[0], NUM_HEADS, HEAD_SIZE)
    before, after = caches(torch.float32), caches(torch.float32)
    SlotCopier(after, elements).copy(np.array([3]), np.array([BLOCK_SIZE + 1]))
    for old, new in zip(before, after, strict=True):
        moved = new[1].flatten()
        assert torch.equal(moved[elements[:, 1]], old[0].flatten()[elements[:, 3]])
        new[1].view(-1)[elements[:, 1]] = old[1].flatten()[elements[:, 1]]
        assert torch.equal(old, new)


def test_a_nan_is_copied_bit_by_bit():
    kv_caches = caches(torch.float32)
    kv_caches[0][0] = torch.nan
    elements = probe_slot_elements(write_rows, kv_caches[0], NUM_HEADS, HEAD_SIZE)
    make_slot_copier(kv_caches, elements).copy(np.array([0]), np.array([BLOCK_SIZE]))
    assert torch.equal(
        kv_caches[0][1, :, 0].view(torch.int32), kv_caches[0][0, :, 0].view(torch.int32)
    )


def test_the_checksum_changes_with_any_slot_and_its_place():
    kv_caches = caches(torch.bfloat16)
    elements = probe_slot_elements(write_rows, kv_caches[0], NUM_HEADS, HEAD_SIZE)
    copier = make_slot_copier(kv_caches, elements)
    slots = np.arange(10, 31)
    checksum = copier.checksum(slots)
    assert copier.checksum(slots) == checksum
    assert copier.checksum(slots[::-1].copy()) != checksum
    copier.copy(np.array([50]), np.array([17]))
    assert copier.checksum(slots) != checksum


def test_blocks_go_to_host_memory_and_back_to_other_blocks():
    elements = probe_slot_elements(write_transposed, caches(torch.float32)[0], NUM_HEADS, HEAD_SIZE)
    before, after = caches(torch.bfloat16), caches(torch.bfloat16)
    copier = SlotCopier(after, elements)
    saved = copier.read_blocks([5, 1])
    for layer in after:
        layer[5] = float("nan")
    copier.write_blocks([2, 7], saved)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[2], old[5])
        assert torch.equal(new[7], old[1])
        assert all(torch.equal(new[i], old[i]) for i in (0, 1, 3, 4, 6, 8))
