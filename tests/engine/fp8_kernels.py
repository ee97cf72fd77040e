"""Stand-ins for vLLM's CPU kernels of an fp8 KV cache, which need AVX-512 or AMX.

They keep the same bytes in the same places as vLLM's C++ (`csrc/cpu/cpu_attn_fp8.hpp`, its layout
without AMX). Attention is vLLM's own, on the values that the bytes stand for.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm import _custom_ops as ops
from vllm.v1.attention.backends import cpu_attn

FP8 = torch.float8_e4m3fn


def use_fp8_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes vLLM's CPU attention take an fp8 cache; changes nothing where the CPU can."""
    if torch.cpu._is_avx512_supported():
        return
    find_isa, schedule = cpu_attn._get_attn_isa, ops.cpu_attn_get_scheduler_metadata
    attend = ops.cpu_attention_with_kv_cache

    def schedule_fp8(**args: Any) -> torch.Tensor:
        return schedule(**args | {"kv_cache_dtype": "auto"})

    def attend_fp8(*, k_scale: float, v_scale: float, **args: Any) -> None:
        dtype = args["query"].dtype
        key_cache = dequantized(args["key_cache"], k_scale).to(dtype)
        value_cache = dequantized(args["value_cache"], v_scale).to(dtype)
        plain = {"key_cache": key_cache, "value_cache": value_cache, "kv_cache_dtype": "auto"}
        attend(**args | plain)

    monkeypatch.setattr(cpu_attn, "_get_attn_isa", lambda *args: find_isa(*args[:3]))
    monkeypatch.setattr(ops, "cpu_attn_get_scheduler_metadata", schedule_fp8)
    monkeypatch.setattr(ops, "cpu_attn_reshape_and_cache", write_fp8)
    monkeypatch.setattr(ops, "cpu_attention_with_kv_cache", attend_fp8)


def write_fp8(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    isa: str,
    *,
    k_scale: float,
    v_scale: float,
    kv_cache_dtype: str,
) -> None:
    """Writes K of a block `[head_size, block_size]`, V `[block_size, head_size]`, as bytes."""
    block_size = key_cache.shape[2]
    columns = key_cache.view(*key_cache.shape[:2], -1, block_size)
    is_used = slot_mapping >= 0
    blocks, slots = slot_mapping[is_used] // block_size, slot_mapping[is_used] % block_size
    columns[blocks, :, :, slots] = quantized(key[is_used], k_scale)
    value_cache[blocks, :, slots] = quantized(value[is_used], v_scale)


def quantized(values: torch.Tensor, scale: float) -> torch.Tensor:
    """Bytes of e4m3; what they cannot hold is cut off, as in vLLM's C++."""
    largest = torch.finfo(FP8).max
    scaled = (values.float() / scale).clamp(-largest, largest)
    # The exponent of float32 counts from -127, that of e4m3 from -7.
    bits = (scaled * 2.0**-120).view(torch.int32)
    return (((bits >> 24) & 0x80) | ((bits >> 20) & 0x7F)).to(torch.uint8)


def dequantized(cache: torch.Tensor, scale: float) -> torch.Tensor:
    """The values that bytes stand for, float32."""
    return cache.view(FP8).float() * scale
