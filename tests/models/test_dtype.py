"""The type of numbers that embedded models run with."""

from __future__ import annotations

import pytest

from tests import cpus
from vllm_promptcache.models import dtype_reason, fast_dtype


@pytest.mark.parametrize("flags", [cpus.AVX2, cpus.AVX512])
def test_a_cpu_that_emulates_bfloat16_computes_in_float32(monkeypatch, flags) -> None:
    cpus.pretend(monkeypatch, flags, is_cpu=True)
    assert fast_dtype() == "float32"
    assert dtype_reason("float32").startswith("float32, as this CPU (")
    assert dtype_reason("float32").endswith(") would only emulate bfloat16")


@pytest.mark.parametrize(
    ("flags", "is_cpu"),
    [(cpus.AVX512_BF16, True), (cpus.AMX, True), (cpus.ARM, True), (cpus.AVX2, False)],
    ids=["AVX-512 BF16", "AMX", "ARM", "GPU"],
)
def test_elsewhere_the_model_decides(monkeypatch, flags, is_cpu) -> None:
    cpus.pretend(monkeypatch, flags, is_cpu=is_cpu)
    assert fast_dtype() == "auto"
    assert dtype_reason("auto") == "bfloat16, the type of the model's weights"
