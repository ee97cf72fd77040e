"""CPUs to pretend, by what torch says of them."""

from __future__ import annotations

from types import MappingProxyType, SimpleNamespace

import pytest
import torch

AVX2 = {"architecture": "x86_64", "avx2": True, "f16c": True, "avx512_bf16": False}
AVX512 = AVX2 | {"avx512_f": True}
AVX512_BF16 = AVX512 | {"avx512_bf16": True}
AMX = AVX512 | {"amx_tile": True, "amx_bf16": True}
SAPPHIRE_RAPIDS = AVX512_BF16 | {"avx512_fp16": True}
ARM = {"architecture": "arm64", "neon": True, "bf16": False}


def pretend(monkeypatch: pytest.MonkeyPatch, flags: dict[str, object], *, is_cpu: bool) -> None:
    """Makes torch see a CPU with these flags, and vLLM run on it or on a GPU beside it."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(flags))
    platform = SimpleNamespace(is_cpu=lambda: is_cpu)
    monkeypatch.setattr("vllm.platforms.current_platform", platform)
