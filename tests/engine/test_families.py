"""Families of models: those that agree with the reference, and those that are refused at start."""

from __future__ import annotations

from pathlib import Path

import pytest
from vllm.config import set_current_vllm_config

from tests.engine.agreement import Agreement
from tests.engine.harness import running_engine
from tests.families import REFUSED, SUPPORTED, Family
from tests.reference import Reference
from vllm_promptcache.errors import UnsupportedError

NUM_PROMPTS = 20
ENGINE_ARGS = {"block_size": 32, "kv_cache_memory_bytes": 48 << 20}


@pytest.mark.parametrize("family", SUPPORTED, ids=lambda family: family.name)
def test_supported_family_agrees(
    family: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = family.save(tmp_path)
    with running_engine(model, **ENGINE_ARGS) as llm:
        # vLLM runs some families (GPT-NeoX) with transformers' own classes, and patches these so
        # that they can be made with an engine's configuration at hand only.
        with set_current_vllm_config(llm.llm_engine.vllm_config):
            reference = Reference(model)
        modular, plain = Agreement(llm, reference, num_logprobs=-1).run(
            NUM_PROMPTS, seed=0, num_random_schemas=2
        )
    with capsys.disabled():
        print(f"\n{family.name}: {modular}")
    assert modular.num_outputs == NUM_PROMPTS
    assert not modular.wrong
    assert not plain.wrong


@pytest.mark.parametrize("family", REFUSED, ids=lambda family: family.name)
def test_refused_family_names_the_reason(family: Family, tmp_path: Path) -> None:
    model = family.save(tmp_path)
    with (
        pytest.raises(UnsupportedError, match=rf"(?i){family.refused_because}"),
        running_engine(model, **ENGINE_ARGS),
    ):
        pass
