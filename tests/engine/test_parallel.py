"""Prompts of all policies where several workers compute each step, against the reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.environment import prepare_environment, runs_on_v2

prepare_environment()

from tests.engine.harness import (  # noqa: E402  (vLLM reads its environment when imported)
    Agreement,
    running_engine,
    scheduler_of,
)
from tests.families import LLAMA  # noqa: E402
from tests.reference import Reference  # noqa: E402

NUM_PROMPTS = 16
V2_ONLY = pytest.mark.skipif(not runs_on_v2(), reason="vLLM's V1 runner for CPUs has no stages")


@pytest.mark.parametrize(
    "option",
    ["tensor_parallel_size", pytest.param("pipeline_parallel_size", marks=V2_ONLY)],
)
def test_prompts_agree(option: str, tmp_path: Path) -> None:
    model = LLAMA.save(tmp_path)
    options = {option: 2, "max_num_batched_tokens": 64, "prompt_modules": {"verify": True}}
    with running_engine(model, block_size=32, kv_cache_memory_bytes=64 << 20, **options) as llm:
        agreement = Agreement(llm, Reference(model), 50)
        modular, plain = agreement.run(NUM_PROMPTS, seed=5, num_random_schemas=3)
        scheduler_of(llm).check_integrity()
    assert modular.num_outputs == NUM_PROMPTS
    assert not modular.wrong, modular
    assert not plain.wrong, plain
