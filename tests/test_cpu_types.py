"""Which types a CPU emulates, and what the log says of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests import cpus
from vllm_promptcache import engine
from vllm_promptcache.cpu_types import emulation_notice, is_emulated


@pytest.mark.parametrize(
    ("flags", "emulated"),
    [
        (cpus.AVX2, {"bfloat16", "float16"}),
        (cpus.AVX512, {"bfloat16", "float16"}),
        (cpus.AVX512_BF16, {"float16"}),
        (cpus.AMX, {"float16"}),
        (cpus.SAPPHIRE_RAPIDS, set()),
        (cpus.ARM, set()),
    ],
)
def test_a_type_without_instructions_is_emulated(monkeypatch, flags, emulated) -> None:
    cpus.pretend(monkeypatch, flags, is_cpu=True)
    types = ("bfloat16", "float16", "float32", "auto")
    assert {name for name in types if is_emulated(name)} == emulated


def test_beside_a_gpu_the_cpu_does_not_matter(monkeypatch) -> None:
    cpus.pretend(monkeypatch, cpus.AVX2, is_cpu=False)
    assert not is_emulated("bfloat16")
    assert emulation_notice("bfloat16") is None


def config(dtype: torch.dtype, rank: int = 0) -> SimpleNamespace:
    """As much of an engine's configuration as the notice reads."""
    return SimpleNamespace(
        model_config=SimpleNamespace(dtype=dtype),
        parallel_config=SimpleNamespace(_api_process_rank=rank),
    )


@pytest.fixture
def lines(monkeypatch) -> list[str]:
    """What the engine's module logs as a warning."""
    lines: list[str] = []
    monkeypatch.setattr(engine, "logger", SimpleNamespace(warning_once=lines.append))
    return lines


def test_the_log_names_the_type_and_the_option(monkeypatch, lines) -> None:
    cpus.pretend(monkeypatch, cpus.AVX2, is_cpu=True)
    engine.warn_of_emulation(config(torch.bfloat16))
    (line,) = lines
    assert "has no instructions for bfloat16" in line
    assert "--dtype float32" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("flags", "dtype", "rank"),
    [
        (cpus.AVX2, torch.float32, 0),
        (cpus.AVX512_BF16, torch.bfloat16, 0),
        (cpus.AVX2, torch.bfloat16, 1),
        (cpus.AVX2, torch.bfloat16, -1),
    ],
    ids=["float32", "native", "second API server", "engine core"],
)
def test_the_log_is_silent_otherwise(monkeypatch, lines, flags, dtype, rank) -> None:
    cpus.pretend(monkeypatch, flags, is_cpu=True)
    engine.warn_of_emulation(config(dtype, rank))
    assert lines == []
