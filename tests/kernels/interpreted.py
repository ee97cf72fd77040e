"""Triton kernels under the interpreter, against the plain versions; `test_triton.py` runs this.

pytest does not collect it on its own: Triton has to be imported with TRITON_INTERPRET=1.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.runner_v2 import use_runner_v2
from vllm_promptcache.kernels import copy_slots
from vllm_promptcache.kernels.gpu import TritonSlotCopier
from vllm_promptcache.kernels.layout import probe_slot_elements, slot_elements_of
from vllm_promptcache.kernels.reference import SlotCopier
from vllm_promptcache.kernels.rotate_keys import rotate_keys_triton
from vllm_promptcache.kernels.rotation import rotate_keys

from .layout_cases import CHECKS, check_copy
from .layouts import FORMS, TAKEN, Caches, Form
from .test_copy_slots import caches, copies
from .test_layout import HEAD_SIZE, write_rows, write_transposed
from .test_rotate_blocks import SOURCE, TARGET, random_rotation, slot_elements
from .test_rotation import EIGHTH_TURN

# Before vLLM is imported: its own Triton kernels are interpreted, too.
use_runner_v2()

# Head sizes and rotary dimensions, the last two for partial rotary embeddings.
SIZES = [(64, 64), (80, 80), (96, 96), (128, 128), (80, 32), (96, 24)]

# bfloat16 apart, see below; its bits are moved as those of float16 are.
_HALF = {torch.bfloat16: torch.float16}
LAYOUTS = [replace(form, dtype=_HALF.get(form.dtype, form.dtype)) for form in FORMS]


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


@pytest.mark.parametrize(("head_size", "rotary_dim"), SIZES)
@pytest.mark.parametrize("is_neox", [True, False])
def test_8_bit_keys_are_rotated_as_in_plain_torch(head_size, rotary_dim, is_neox):
    keys = torch.randn(7, 3, head_size).to(torch.float8_e4m3fn)
    rotation = random_rotation(7, rotary_dim, is_neox)
    expected, actual = rotate_keys(keys, rotation), rotate_keys_triton(keys, rotation)
    # The interpreter loses the carry of a rounding, and cuts off what is smaller than 2**-6.
    is_rounded = (expected.view(torch.uint8) & 7 != 0) & (expected.float().abs() >= 2**-6)
    assert is_rounded.float().mean() > 0.7
    assert torch.equal(actual.float()[is_rounded], expected.float()[is_rounded])


def test_8_bit_keys_saturate():
    keys = torch.full((1, 1, 2), 448.0).to(torch.float8_e4m3fn)
    assert rotate_keys_triton(keys, EIGHTH_TURN).float().tolist() == [[[0.0, 448.0]]]


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


@pytest.mark.parametrize(
    ("form", "check"),
    # How the interpreter rounds 8-bit floats: see above.
    [(f, name) for f in LAYOUTS for name in CHECKS if name != "rotate" or f.dtype.itemsize > 1],
    ids=str,
)
def test_all_layouts_are_served(form, check):
    CHECKS[check](form, lambda caches: TritonSlotCopier(caches.layers, caches.elements()))


@pytest.mark.parametrize("form", LAYOUTS, ids=str)
def test_the_writer_of_a_backend_for_gpus_is_probed(form, monkeypatch):
    from vllm.platforms import current_platform
    from vllm.v1.attention.backend import AttentionType
    from vllm.v1.attention.backends.triton_attn import TritonAttentionImpl

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(type(current_platform), "has_device_capability", lambda *args: True)
    impl = SimpleNamespace(
        attn_type=AttentionType.DECODER,
        head_size=form.head_size,
        fp8_dtype=torch.float8_e4m3fn,
        kv_cache_dtype="fp8" if form.dtype == torch.float8_e4m3fn else "auto",
        _is_per_token_head_quant=False,
    )
    layer = SimpleNamespace(_k_scale=torch.tensor(0.3), _v_scale=torch.tensor(7.0))
    caches = Caches(form)
    cache = caches.layers[0]
    found = probe_slot_elements(
        lambda *args: TritonAttentionImpl.do_kv_cache_update(impl, layer, *args),
        # vLLM registers 8-bit floats as bytes.
        cache.view(torch.uint8) if cache.element_size() == 1 else cache,
        form.num_heads,
        form.head_size,
    )
    assert torch.equal(slot_elements_of(found, form.block_size), caches.elements())


@pytest.mark.parametrize("num_layers_at_once", [1, 2])
@pytest.mark.parametrize("layout", TAKEN)
def test_long_copies_go_a_few_layers_at_a_time(monkeypatch, layout, num_layers_at_once):
    form = Form(layout)
    num_tokens, num_elements = 38, 2 * form.num_heads * form.head_size
    kept = num_layers_at_once * num_tokens * num_elements
    monkeypatch.setattr(copy_slots, "_NUM_KEPT", kept)
    check_copy(form, lambda caches: TritonSlotCopier(caches.layers, caches.elements()))


def test_offsets_may_need_more_than_32_bits():
    # Of these two GB three blocks are touched.
    block_stride, elements = 2**30 + 8, torch.arange(24).view(3, 8)
    memory = torch.empty(2 * block_stride + 24, dtype=torch.int8)
    layer = memory.as_strided((3, 24), (block_stride, 1))
    layer[:] = torch.arange(72).view(3, 24)
    expected = layer.clone()
    SlotCopier([expected], elements).copy(np.arange(8), np.arange(16, 24))
    TritonSlotCopier([layer], elements).copy(np.arange(8), np.arange(16, 24))
    assert torch.equal(layer, expected)
