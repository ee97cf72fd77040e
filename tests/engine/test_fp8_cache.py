"""An fp8 KV cache: modules are as far from float32 as plain prompts are.

vLLM's own CPU kernels of such a cache need AVX-512 or AMX. Where there is none, stand-ins keep the
same bytes; see `fp8_kernels.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest

from tests.engine.agreement import Agreement
from tests.engine.fp8_kernels import use_fp8_kernels
from tests.engine.harness import running_engine, scheduler_of
from tests.engine.test_exact import compare, exact_prompts
from tests.families import LLAMA
from tests.reference import Reference
from tests.reference.compare import Tally
from vllm_promptcache import LLM
from vllm_promptcache.compat.worker import attention_layers

NUM_PROMPTS = 40
# Powers of two would leave the bytes as they are.
K_SCALE, V_SCALE = 0.3, 0.7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return LLAMA.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_fp8_kernels(monkeypatch)
        with running_engine(
            model,
            block_size=32,
            kv_cache_memory_bytes=4 << 20,
            kv_cache_dtype="fp8",
            prompt_modules={"verify": True},
        ) as llm:
            set_scales(llm)
            yield llm


def set_scales(llm: LLM) -> None:
    """What a checkpoint would bring."""
    config = llm.llm_engine.vllm_config
    layers = config.compilation_config.static_forward_context
    for layer in attention_layers(config, layers).values():
        layer._k_scale_float, layer._v_scale_float = K_SCALE, V_SCALE


def test_modules_lose_no_more_than_plain_prompts(
    llm: LLM, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of all policies, moved ones included; the reference computes in float32."""
    agreement = Agreement(llm, Reference(model), num_logprobs=-1, tolerance=0.0)
    modular, plain = agreement.run(NUM_PROMPTS, seed=0, num_random_schemas=2)
    with capsys.disabled():
        print(
            f"\nlargest difference to float32, mean: {mean(modular):.3f} nats, of plain prompts "
            f"{mean(plain):.3f}; equal tokens {modular.share_of_equal_tokens:.1%} and "
            f"{plain.share_of_equal_tokens:.1%}"
        )
    assert modular.num_outputs == NUM_PROMPTS
    assert 0 < mean(modular) < 1.3 * mean(plain)
    scheduler_of(llm).check_integrity()


def test_exact_prompts_equal_a_plain_prefill(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is rounded twice where nothing moves."""
    equality = compare(llm, exact_prompts(llm, seed=1, num_prompts=24))
    with capsys.disabled():
        print(f"\nexact: {equality}")
    assert not equality.other


def mean(tally: Tally) -> float:
    """Of the largest differences of all outputs, in nats."""
    return fmean(difference.largest for difference in tally.differences)
