"""KV caches in all of vLLM's layouts, made by its own code, with poison all around."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch

from vllm_promptcache.kernels.layout import probe_slot_elements, slot_elements_of

NUM_LAYERS, NUM_BLOCKS = 3, 7
_GUARD_BYTES = 4096


@dataclass(frozen=True)
class Form:
    """What a KV cache looks like.

    Attributes:
        layout: Name of vLLM's layout.
        block_size: Slots of a block.
        kernel_block_size: Slots of one of the attention backend's, if these are smaller.
        padding_bytes: Behind each layer's part of a block.
    """

    layout: str
    block_size: int = 16
    kernel_block_size: int | None = None
    padding_bytes: int = 0
    num_heads: int = 3
    head_size: int = 24
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        parts = [self.layout, str(self.block_size), str(self.dtype).removeprefix("torch.")]
        parts += [f"kernel{self.kernel_block_size}"] if self.kernel_block_size else []
        parts += [f"padding{self.padding_bytes}"] if self.padding_bytes else []
        return "-".join(parts)


TAKEN = ("LBNHC", "LBHNC", "BLNHC", "BLHNC")
REFUSED = ("LHBNC", "BHLNC")

FORMS = [
    Form(layout, **others)
    for layout in TAKEN
    for others in (
        {},
        {"block_size": 48, "dtype": torch.bfloat16},
        {"block_size": 48, "padding_bytes": 96, "dtype": torch.float16},
        {"num_heads": 1, "padding_bytes": 4},
        {"dtype": torch.float8_e4m3fn},
    )
]
# vLLM itself refuses them where other layers' blocks lie between a layer's.
FORMS += [
    Form(layout, block_size=48, kernel_block_size=16, dtype=torch.bfloat16)
    for layout in ("LBNHC", "LBHNC")
]


class Caches:
    """KV caches of some layers, `[num_blocks, num_heads, num_slots, 2 * head_size]` each.

    Attributes:
        form: What they look like.
        memory: All of it, as bytes: random ones before, between and behind the blocks.
        layers: Views of it.
    """

    def __init__(self, form: Form) -> None:
        from vllm.v1.kv_cache_interface import create_kv_cache_views
        from vllm.v1.kv_cache_layout import KVCacheLayout

        self.form = form
        spec, config = _vllm_config(form)
        generator = torch.Generator().manual_seed(0)
        num_bytes = config.kv_cache_tensors[0].size + 2 * _GUARD_BYTES
        self.memory = torch.randint(-128, 128, (num_bytes,), generator=generator).to(torch.int8)
        self.layers = [
            view
            for tensor in config.kv_cache_tensors
            for view in create_kv_cache_views(
                self.memory[_GUARD_BYTES:-_GUARD_BYTES],
                spec,
                config.num_blocks,
                KVCacheLayout[form.layout],
                tensor,
                form.kernel_block_size,
            )
        ]
        for layer in self.layers:
            layer.copy_(torch.randn(layer.shape, generator=generator))

    def elements(self) -> torch.Tensor:
        """Those of slots, as a worker finds them."""
        heads = self.form.num_heads, self.form.head_size
        blocks = probe_slot_elements(write_slots, self.layers[0], *heads)
        return slot_elements_of(blocks, self.form.block_size)

    def __getitem__(self, slots: torch.Tensor) -> torch.Tensor:
        """`[num_layers, num_slots, num_heads, 2 * head_size]`, by vLLM's logical indexes."""
        num_slots = self.layers[0].shape[2]
        blocks, inside = slots // num_slots, slots % num_slots
        return torch.stack([layer[blocks, :, inside] for layer in self.layers])

    def __setitem__(self, slots: torch.Tensor, kv: torch.Tensor) -> None:
        for layer, data in zip(self.layers, kv, strict=True):
            write_slots(*data.chunk(2, dim=-1), layer, slots)


def write_slots(key, value, cache, slot_mapping):
    """What backends of GPUs do, by logical indexes."""
    num_slots = cache.shape[2]
    blocks, slots = slot_mapping // num_slots, slot_mapping % num_slots
    cache[blocks, :, slots] = torch.cat([key, value], dim=-1).to(cache.dtype)


def _vllm_config(form):
    """A spec of the layers and how vLLM places these."""
    from vllm.config import CacheConfig
    from vllm.v1.core.kv_cache_utils import get_kv_cache_config_from_groups
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheGroupSpec

    heads = {"num_kv_heads": form.num_heads, "head_size": form.head_size}
    spec = FullAttentionSpec(block_size=form.block_size, dtype=form.dtype, **heads)
    page_bytes = spec.page_size_bytes + form.padding_bytes
    if form.padding_bytes:
        spec = FullAttentionSpec(
            block_size=form.block_size, dtype=form.dtype, page_size_padded=page_bytes, **heads
        )
    config = SimpleNamespace(
        cache_config=CacheConfig(), attention_config=SimpleNamespace(hisparse_config=None)
    )
    config.cache_config.kv_cache_layout = form.layout
    group = KVCacheGroupSpec([f"layers.{i}" for i in range(NUM_LAYERS)], spec)
    num_bytes = NUM_BLOCKS * NUM_LAYERS * page_bytes
    return spec, get_kv_cache_config_from_groups(config, [group], num_bytes)
