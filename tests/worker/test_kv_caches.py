"""KV caches as vLLM registers them: what the worker makes of all layouts, and what it refuses."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.kernels.layouts import FORMS, REFUSED, Caches, Form, write_slots
from vllm_promptcache.errors import UnsupportedError
from vllm_promptcache.worker.attention_probe import AttentionProbe, ObservedTokens
from vllm_promptcache.worker.kv_caches import as_floats, find_slot_elements

NUM_QUERIES_EACH, SCALE = 2, 0.3
SLOTS = np.array([90, 3, 64, 5, 99, 98, 31, 32, 100, 7, 8])


class Impl:
    """Writes the keys of a step to the cache in `forward`, as some backends do."""

    scale = SCALE

    def do_kv_cache_update(self, layer, key, value, kv_cache, slot_mapping):
        write_slots(key, value, kv_cache, slot_mapping)

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output):
        self.do_kv_cache_update(layer, key, value, kv_cache, torch.from_numpy(SLOTS[-3:]))
        return output


def layers_of(form, kv_cache_dtype="auto"):
    own = {
        "num_kv_heads": form.num_heads,
        "head_size": form.head_size,
        "kv_cache_dtype": kv_cache_dtype,
    }
    return {str(i): SimpleNamespace(impl=Impl(), **own) for i in range(3)}


def named(caches):
    return {str(i): layer for i, layer in enumerate(caches.layers)}


@pytest.mark.parametrize("form", [f for f in FORMS if f.dtype.itemsize > 1], ids=str)
def test_attention_is_measured_in_all_layouts(form):
    caches, layers = Caches(form), layers_of(form)
    elements = find_slot_elements(layers, named(caches), form.block_size)
    probe = AttentionProbe.create(layers, named(caches), elements)
    probe.start([ObservedTokens("a", range(1, 4), SLOTS)])
    # A row of another request, three that are observed.
    query = torch.randn(4, NUM_QUERIES_EACH * form.num_heads, form.head_size)
    key, value = torch.randn(2, 3, form.num_heads, form.head_size).to(form.dtype)
    for name, layer in layers.items():
        layer.impl.forward(layer, query, key, value, named(caches)[name], object(), output=None)
    np.testing.assert_allclose(probe.take()["a"].wait(), attention(caches, query[1:]), rtol=1e-4)


def attention(caches, query):
    """To each token, summed over layers, heads and queries, by vLLM's logical indexes."""
    keys = caches[torch.from_numpy(SLOTS)].chunk(2, dim=-1)[0].float()
    query = query.view(3, -1, NUM_QUERIES_EACH, query.shape[-1])
    logits = torch.einsum("rkgd,ltkd->lkgrt", query, keys) * SCALE
    hidden = torch.ones(3, len(SLOTS), dtype=torch.bool).triu(len(SLOTS) - 2)
    return logits.masked_fill(hidden, -torch.inf).softmax(dim=-1).sum(dim=(0, 1, 2, 3)).numpy()


@pytest.mark.parametrize("layout", REFUSED)
def test_blocks_in_pieces_are_refused(layout):
    form = Form(layout)
    with pytest.raises(ValueError, match="set VLLM_KV_CACHE_LAYOUT to"):
        find_slot_elements(layers_of(form), named(Caches(form)), form.block_size)


@pytest.mark.parametrize("kv_cache_dtype", ["fp8", "fp8_e4m3"])
def test_bytes_are_8_bit_floats_in_the_same_memory(kv_cache_dtype):
    form = Form("LBHNC", dtype=torch.float8_e4m3fn)
    caches = named(Caches(form))
    raw = {name: cache.view(torch.uint8) for name, cache in caches.items()}
    floats = as_floats(layers_of(form, kv_cache_dtype), raw)
    for name, cache in caches.items():
        assert floats[name].dtype == torch.float8_e4m3fn
        assert floats[name].data_ptr() == cache.data_ptr()
        assert floats[name].stride() == cache.stride()


@pytest.mark.parametrize(
    ("kv_cache_dtype", "dtype"),
    [
        ("fp8_e5m2", torch.uint8),
        ("fp8_per_token_head", torch.uint8),
        ("int8_per_token_head", torch.int8),
        ("nvfp4", torch.uint8),
    ],
)
def test_a_type_that_a_checkpoint_asked_for_is_refused(kv_cache_dtype, dtype):
    form = Form("LBNHC")
    layers, caches = layers_of(form), named(Caches(form))
    # One layer is enough.
    layers["2"].kv_cache_dtype, caches["2"] = kv_cache_dtype, caches["2"].to(dtype)
    with pytest.raises(UnsupportedError, match=rf"type {kv_cache_dtype}\nhint: set --kv-"):
        as_floats(layers, caches)


@pytest.mark.parametrize("change", [{"num_heads": 6}, {"head_size": 12}])
def test_layers_of_different_heads_are_refused(change):
    form = Form("LBNHC")
    layers = layers_of(form)
    layers["1"] = layers_of(replace(form, **change))["1"]
    with pytest.raises(UnsupportedError, match="differ in attention backend, KV heads or head"):
        find_slot_elements(layers, named(Caches(form)), form.block_size)


def test_content_beside_keys_and_values_is_refused():
    form = Form("LBNHC")
    layers = layers_of(replace(form, head_size=20))
    with pytest.raises(ValueError, match="hold more than keys and values"):
        find_slot_elements(layers, named(Caches(form)), form.block_size)
