"""What vLLM has registered as the KV caches of a worker's layers: refused or understood."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from vllm.platforms import current_platform

from vllm_promptcache.compat.check import check_object
from vllm_promptcache.compat.names import BACKEND, LAYER
from vllm_promptcache.compat.worker import kv_writer
from vllm_promptcache.errors import UnsupportedError
from vllm_promptcache.kernels.layout import probe_slot_elements, slot_elements_of

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Those with one scale a layer, or one for each of its heads. Not e5m2: under that name vLLM's
# TRITON_ATTN stores e4m3.
_FP8 = ("fp8", "fp8_e4m3")


def as_floats(
    layers: Mapping[str, Any], kv_caches: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """KV caches as the floats that they hold: vLLM registers 8-bit ones as bytes.

    Args:
        layers: vLLM's attention layers by name.
        kv_caches: KV cache of each, `[num_blocks, ...]`.

    Returns:
        Views of the caches. 8-bit floats are to be multiplied by their layer's scale.

    Raises:
        UnsupportedError: The caches are quantized in another way.
    """
    return {name: _as_floats(layers[name], cache) for name, cache in kv_caches.items()}


def _as_floats(layer: Any, kv_cache: torch.Tensor) -> torch.Tensor:
    """The engine's settings were looked at, but a checkpoint may ask for a type of its own."""
    check_object(layer, LAYER)
    if kv_cache.dtype in _DTYPES:
        return kv_cache
    if kv_cache.dtype != torch.uint8 or layer.kv_cache_dtype not in _FP8:
        raise UnsupportedError(
            f"prompt modules cannot be combined with a KV cache of type {layer.kv_cache_dtype}",
            "set --kv-cache-dtype bfloat16 or fp8; what is set wins over what a checkpoint asks "
            "for",
        )
    return kv_cache.view(current_platform.fp8_dtype())


def find_slot_elements(
    layers: Mapping[str, Any], kv_caches: Mapping[str, torch.Tensor], block_size: int
) -> torch.Tensor:
    """Probes how the layers' attention backend lays out the KV of a slot; changes no cache.

    Args:
        layers: vLLM's attention layers by name.
        kv_caches: KV cache of each as vLLM registers it, `[num_blocks, ...]`; of smaller blocks
            (vLLM's kernel blocks) where the backend takes none as large as the scheduler's.
        block_size: Slots of one of the scheduler's blocks.

    Returns:
        `[num_elements, block_size]`, as `probe_slot_elements` does.

    Raises:
        UnsupportedError: The layers are not all of one kind.
        ValueError: The layout is not one that can be copied by slots and blocks.
    """
    name, layer = next(iter(layers.items()))
    check_object(layer, LAYER)
    check_object(layer.impl, BACKEND)
    _check_kinds(layers.values())
    blocks = probe_slot_elements(
        kv_writer(layer), kv_caches[name], layer.num_kv_heads, layer.head_size
    )
    return slot_elements_of(blocks, block_size)


def _check_kinds(layers: Iterable[Any]) -> None:
    """One layer is probed for all."""
    kinds = {(type(x.impl).__name__, x.num_kv_heads, x.head_size) for x in layers}
    if len(kinds) > 1:
        raise UnsupportedError(
            "prompt modules cannot be combined with layers that differ in attention backend, KV "
            f"heads or head size: {sorted(kinds)}",
            "start without --enable-prompt-modules",
        )
