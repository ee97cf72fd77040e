"""All of vLLM's layouts: four are served, two refused; `interpreted.py` runs the same in Triton."""

import re

import pytest
import torch

from vllm_promptcache.kernels.block_rows import BlockRows
from vllm_promptcache.kernels.copier import make_slot_copier
from vllm_promptcache.kernels.layout import slot_elements_of
from vllm_promptcache.kernels.reference import SlotCopier

from .layout_cases import CHECKS
from .layouts import FORMS, REFUSED, TAKEN, Caches, Form

COPIERS = {"reference": SlotCopier, "cpu": make_slot_copier}


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("copier", COPIERS)
@pytest.mark.parametrize("check", CHECKS)
def test_it_is_served(form, copier, check):
    CHECKS[check](form, lambda caches: COPIERS[copier](caches.layers, caches.elements()))


def test_all_layouts_of_vllm_are_known():
    from vllm.v1.kv_cache_layout import KVCacheLayout

    assert {*TAKEN, *REFUSED} == {layout.name for layout in KVCacheLayout}
    assert set(TAKEN) == {layout.name for layout in KVCacheLayout if layout.is_block_compact}


@pytest.mark.parametrize("layout", REFUSED)
def test_blocks_in_pieces_are_refused_with_the_setting_that_helps(layout):
    from vllm import envs

    caches = Caches(Form(layout))
    elements = Caches(Form("LBHNC")).elements()
    for attempt in (caches.elements, lambda: SlotCopier(caches.layers, elements)):
        with pytest.raises(ValueError, match="not one run of memory") as refusal:
            attempt()
        assert hasattr(envs, "VLLM_KV_CACHE_LAYOUT")
        named = re.search(r"set VLLM_KV_CACHE_LAYOUT to ([A-Z, or]+),", str(refusal.value))
        assert set(re.findall(r"[A-Z]{5}", named[1])) == set(TAKEN)


@pytest.mark.parametrize("layout", REFUSED)
@pytest.mark.parametrize("check", CHECKS)
def test_of_one_head_all_blocks_are_whole(layout, check):
    form = Form(layout, num_heads=1)
    CHECKS[check](form, lambda caches: SlotCopier(caches.layers, caches.elements()))


@pytest.mark.parametrize("block_size", [8, 24, 40])
def test_a_block_of_parts_of_the_backends_is_refused(block_size):
    blocks = Caches(Form("LBNHC")).elements()
    with pytest.raises(ValueError, match="have 16: set --block-size to a multiple"):
        slot_elements_of(blocks, block_size)


@pytest.mark.parametrize("form", [Form("BLNHC"), Form("LBNHC", padding_bytes=96)], ids=str)
def test_kernel_blocks_that_lie_apart_are_refused(form):
    layer = Caches(form).layers[0]
    with pytest.raises(ValueError, match="set --block-size to what the backend takes"):
        BlockRows.of(layer, 2 * layer[0].numel())


def test_layers_that_differ_are_refused():
    layers, others = (Caches(Form(layout)).layers for layout in ("LBNHC", "LBHNC"))
    num_elements = layers[0][0].numel()
    for unlike in (others[1], layers[1][1:], layers[1].view(torch.int32)):
        with pytest.raises(ValueError, match="not alike"):
            BlockRows.of_layers([layers[0], unlike], num_elements)


def test_layers_that_share_their_cache_are_refused():
    layers = Caches(Form("LBNHC")).layers
    with pytest.raises(ValueError, match="changed twice"):
        BlockRows.of_layers([*layers, layers[0]], layers[0][0].numel())
