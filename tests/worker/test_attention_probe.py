"""The attention probe, against sums written out and against vLLM's own CPU attention."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vllm_promptcache.compat.worker import kv_writer
from vllm_promptcache.kernels.layout import probe_slot_elements
from vllm_promptcache.steps.slots import slots_of
from vllm_promptcache.worker.attention_probe import (
    AttentionProbe,
    MeasuredAttention,
    ObservedTokens,
)

NUM_BLOCKS, BLOCK_SIZE = 6, 32
NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 4, 2, 32
SCALE = 0.3
METADATA = object()

# Sequences scattered over blocks; the first five rows of the batch are those of a third request.
LONG = ObservedTokens("long", range(5, 8), np.array([170, 3, 64, 5, 99, 98, 31, 32, 120, 7, 8]))
SHORT = ObservedTokens("short", range(8, 9), np.array([191, 0, 66]))
NUM_ROWS = 10  # the last is padding


def taken(probe):
    """What a probe has measured, as arrays."""
    return MeasuredAttention(probe.take())


def write_transposed(key, value, cache, slot_mapping):
    """K `[head_size, block_size]`, behind it V `[block_size, head_size]`."""
    halves = cache.view(len(cache), NUM_KV_HEADS, 2, -1)
    blocks, slots = slot_mapping // BLOCK_SIZE, slot_mapping % BLOCK_SIZE
    keys = halves[:, :, 0].view(-1, NUM_KV_HEADS, HEAD_SIZE, BLOCK_SIZE)
    values = halves[:, :, 1].view(-1, NUM_KV_HEADS, BLOCK_SIZE, HEAD_SIZE)
    keys[blocks, :, :, slots] = key
    values[blocks, :, slots] = value


class FakeImpl:
    """Writes the keys of a step to the cache, as some backends do in `forward`."""

    def __init__(self, slots, **attributes):
        self.scale = SCALE
        self.slots = slots
        vars(self).update(attributes)

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output, **kwargs):
        write_transposed(key, value, kv_cache, self.slots)
        return output


class Model:
    """Attention layers by hand; the keys of all tokens but those of a step are in the cache."""

    def __init__(self, num_layers=2, dtype=torch.float32, **attributes):
        self._random, self._dtype = torch.Generator().manual_seed(0), dtype
        # Rows 5 to 8 are the last tokens of `LONG` and `SHORT`, the others go to a block of theirs.
        step = [128, 129, 130, 131, 132, *LONG.slots[-3:], SHORT.slots[-1], 133]
        self.slots = torch.tensor(step)
        self.layers = {str(i): self._layer(attributes) for i in range(num_layers)}
        shape = (NUM_BLOCKS, NUM_KV_HEADS, BLOCK_SIZE, 2 * HEAD_SIZE)
        self.caches = {name: self._draw(*shape) for name in self.layers}
        self.elements = probe_slot_elements(
            write_transposed, torch.zeros(shape), NUM_KV_HEADS, HEAD_SIZE
        )
        self.queries = {name: self._draw(NUM_ROWS, NUM_HEADS, HEAD_SIZE) for name in self.layers}

    def _draw(self, *shape):
        return torch.randn(shape, generator=self._random).to(self._dtype)

    def _layer(self, attributes):
        heads = {"num_heads": NUM_HEADS, "num_kv_heads": NUM_KV_HEADS, "head_size": HEAD_SIZE}
        return SimpleNamespace(impl=FakeImpl(self.slots, **attributes), **heads)

    def probe(self):
        return AttentionProbe.create(self.layers, self.caches, self.elements)

    def forward(self, attn_metadata=METADATA, is_flat=False):
        """Calls attention with the arguments that vLLM gives it."""
        for name, layer in self.layers.items():
            key, value = (self._draw(NUM_ROWS, NUM_KV_HEADS, HEAD_SIZE) for _ in range(2))
            query, output = self.queries[name], torch.zeros(1)
            query = query.flatten(1) if is_flat else query
            cache = self.caches[name]
            args = (layer, query, key, value, cache, attn_metadata)
            rest = {"output_scale": None, "output_block_scale": None}
            assert layer.impl.forward(*args, output=output, **rest) is output

    def is_observed(self):
        return any("forward" in vars(layer.impl) for layer in self.layers.values())

    def expected(self, observed, names=None):
        """Attention to each token, one query and key after the other."""
        total = np.zeros(len(observed.slots))
        num_before = len(observed.slots) - len(observed.rows)
        for name in names or self.layers:
            for i, row in enumerate(observed.rows):
                for head in range(NUM_HEADS):
                    query = self.queries[name][row, head].detach().float()
                    seen = observed.slots[: num_before + i + 1]
                    keys = [self._key(name, slot, head // 2) for slot in seen]
                    weights = [math.exp(SCALE * float(query @ key)) for key in keys]
                    total[: len(seen)] += np.array(weights) / sum(weights)
        return total

    def _key(self, name, slot, kv_head):
        block = self.caches[name][slot // BLOCK_SIZE, kv_head].view(2, -1)
        return block[0].view(HEAD_SIZE, BLOCK_SIZE)[:, slot % BLOCK_SIZE].float()


@pytest.mark.parametrize("is_flat", [False, True])
def test_attention_is_summed_over_layers_heads_and_tokens(is_flat):
    model = Model()
    probe = model.probe()
    probe.start([LONG, SHORT])
    model.forward(is_flat=is_flat)
    found = taken(probe)
    assert set(found) == {"long", "short"}
    for observed in (LONG, SHORT):
        total = found[observed.request_id]
        assert total.dtype == np.float32
        np.testing.assert_allclose(total, model.expected(observed), rtol=1e-4)
        assert total.sum() == pytest.approx(2 * NUM_HEADS * len(observed.rows), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_is_computed_in_float32(dtype):
    model = Model(dtype=dtype)
    probe = model.probe()
    probe.start([LONG])
    with torch.inference_mode():
        model.forward()
    np.testing.assert_allclose(taken(probe)["long"], model.expected(LONG), rtol=1e-4)


def test_a_query_that_requires_a_gradient_is_observed():
    model = Model()
    for query in model.queries.values():
        query.requires_grad_()
    probe = model.probe()
    probe.start([SHORT])
    model.forward()
    np.testing.assert_allclose(taken(probe)["short"], model.expected(SHORT), rtol=1e-4)


def test_only_the_layers_it_was_given_count():
    model = Model(num_layers=3)
    some = {name: model.layers[name] for name in ("0", "2")}
    probe = AttentionProbe.create(some, model.caches, model.elements)
    probe.start([LONG])
    model.forward()
    expected = model.expected(LONG, names=some)
    np.testing.assert_allclose(taken(probe)["long"], expected, rtol=1e-4)


def test_observers_are_gone_after_take():
    model = Model()
    probe = model.probe()
    probe.start([LONG])
    assert model.is_observed()
    model.forward()
    first = taken(probe)["long"].copy()
    assert not model.is_observed()
    model.forward()
    assert probe.take() == {}
    assert first.any()


def test_a_second_start_drops_the_first():
    model = Model()
    probe = model.probe()
    probe.start([LONG, SHORT])
    model.forward()
    probe.start([LONG])
    model.forward()
    found = taken(probe)
    assert set(found) == {"long"}
    np.testing.assert_allclose(found["long"], model.expected(LONG), rtol=1e-4)
    assert not model.is_observed()


def test_nothing_is_installed_for_no_tokens():
    model = Model()
    probe = model.probe()
    probe.start([])
    assert not model.is_observed()
    model.forward()
    assert probe.take() == {}


@pytest.mark.parametrize("end", [lambda probe: probe.take(), lambda probe: probe.start([])])
def test_no_observer_outlives_a_failed_step(end):
    model = Model()
    probe = model.probe()
    probe.start([LONG])
    model.layers["1"].impl.slots = torch.tensor([NUM_BLOCKS * BLOCK_SIZE])
    with pytest.raises((IndexError, RuntimeError)):
        model.forward()
    end(probe)
    assert not model.is_observed()
    assert probe.take() == {}


def test_a_warm_up_is_not_observed():
    model = Model()
    probe = model.probe()
    probe.start([LONG])
    model.forward(attn_metadata=None)
    assert probe.take() == {}
    assert not model.is_observed()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_quantized_keys_are_refused(dtype):
    assert Model(dtype=dtype).probe() is None


@pytest.mark.parametrize(
    ("attributes", "is_known"),
    [
        ({"alibi_slopes": torch.ones(NUM_HEADS)}, False),
        ({"sinks": torch.ones(NUM_HEADS)}, False),
        ({"sliding_window": 128}, False),
        ({"sliding_window": (127, 0)}, False),
        ({"logits_soft_cap": 30.0}, False),
        ({"sliding_window": -1, "logits_soft_cap": 0}, True),
        ({"sliding_window": (-1, -1), "logits_soft_cap": 0.0, "sinks": None}, True),
        ({"sliding_window": None, "logits_soft_cap": None, "alibi_slopes": None}, True),
    ],
)
def test_attention_of_other_kinds_is_refused(attributes, is_known):
    assert (Model(**attributes).probe() is not None) == is_known


def test_one_layer_of_another_kind_is_enough_to_refuse():
    model = Model()
    model.layers["1"].impl.sliding_window = 128
    assert model.probe() is None
    model.layers["1"].impl.sliding_window = -1
    model.layers["1"].attention_chunk_size = 128
    assert model.probe() is None


def vllm_layer():
    """An attention layer with vLLM's own implementation for CPUs, without a model around it."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, _get_attn_isa

    config = VllmConfig()
    config.model_config = SimpleNamespace(dtype=torch.float32)
    heads = {"num_heads": NUM_HEADS, "head_size": HEAD_SIZE, "num_kv_heads": NUM_KV_HEADS}
    with set_current_vllm_config(config):
        impl = CPUAttentionBackendImpl(
            **heads, scale=SCALE, alibi_slopes=None, sliding_window=None, kv_cache_dtype="auto"
        )
    isa = _get_attn_isa(torch.float32, BLOCK_SIZE, HEAD_SIZE)
    return SimpleNamespace(impl=impl, isa=isa, _k_scale_float=1.0, _v_scale_float=1.0, **heads)


def vllm_metadata(layer, num_rows, num_tokens, block_ids):
    """That of a step with one request."""
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadata

    shared = {
        "query_start_loc": torch.tensor([0, num_rows], dtype=torch.int32),
        "seq_lens": torch.tensor([num_tokens], dtype=torch.int32),
        "causal": True,
    }
    schedule = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=1,
        num_heads=layer.num_heads,
        num_kv_heads=layer.num_kv_heads,
        head_dim=layer.head_size,
        dtype=torch.float32,
        sliding_window_size=-1,
        isa=layer.isa,
        enable_kv_split=False,
        **shared,
    )
    return CPUAttentionMetadata(
        num_actual_tokens=num_rows,
        max_query_len=num_rows,
        max_seq_len=num_tokens,
        block_table=torch.tensor([block_ids], dtype=torch.int32),
        slot_mapping=torch.empty(0),
        scheduler_metadata=schedule,
        **shared,
    )


def test_it_agrees_with_attention_of_vllm():
    num_rows, num_tokens, block_ids = 5, HEAD_SIZE + 8, [4, 1]
    layer, generator = vllm_layer(), torch.Generator().manual_seed(0)
    cache = torch.zeros(NUM_BLOCKS, NUM_KV_HEADS, BLOCK_SIZE, 2 * HEAD_SIZE)
    slots = slots_of(block_ids, np.arange(num_tokens), BLOCK_SIZE)
    key = torch.randn(num_tokens, NUM_KV_HEADS, HEAD_SIZE, generator=generator)
    # Values of the last tokens are unit vectors: what a head returns is its attention to these.
    value = torch.zeros_like(key)
    value[-HEAD_SIZE:] = torch.eye(HEAD_SIZE)[:, None]
    kv_writer(layer)(key, value, cache, torch.from_numpy(slots))
    elements = probe_slot_elements(kv_writer(layer), cache, NUM_KV_HEADS, HEAD_SIZE)

    probe = AttentionProbe.create({"0": layer}, {"0": cache}, elements)
    probe.start([ObservedTokens("a", range(num_rows), slots)])
    query = torch.randn(num_rows, NUM_HEADS, HEAD_SIZE, generator=generator)
    output = torch.empty_like(query)
    metadata = vllm_metadata(layer, num_rows, num_tokens, block_ids)
    layer.impl.forward(
        layer, query, key[-num_rows:], value[-num_rows:], cache, metadata, output=output
    )
    expected = output.sum(dim=(0, 1)).numpy()
    np.testing.assert_allclose(taken(probe)["a"][-HEAD_SIZE:], expected, rtol=1e-4)
