"""Other KV connectors beside ours: vLLM's example, which keeps prompts on disk, and offloading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from random import Random
from typing import Any

import pytest
from vllm import RequestOutput
from vllm.config import KVTransferConfig

from tests.async_scheduling import asynchronous_scheduling
from tests.engine.harness import greedy, running_engine, scheduler_of
from tests.families import LLAMA
from tests.generators import random_text
from vllm_promptcache import LLM

ENGINE_ARGS = {
    "block_size": 32,
    "num_gpu_blocks_override": 40,
    "kv_cache_memory_bytes": 16 << 20,
    "max_model_len": 1024,
}
RNG = Random(3)
TEXTS = [random_text(RNG, 60) for _ in range(4)]
MODULES = "".join(f'<module name="m{i}">{text}</module>' for i, text in enumerate(TEXTS))
SCHEMA = f'<schema name="s">{MODULES}</schema>'
PML = [f'<prompt schema="s"><m{i}/><m{i + 1}/> Which?</prompt>' for i in range(3)]
PLAIN = [f"{text} Which?" for text in TEXTS]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return LLAMA.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(scope="module")
def expected(model: Path) -> list[tuple[int, ...]]:
    """Answers of an engine without the other connector."""
    with running_engine(model, **ENGINE_ARGS, prompt_modules={}) as llm:
        llm.add_schema(SCHEMA)
        return tokens(generate(llm, PML + PLAIN))


@contextmanager
def engine(model: Path, **engine_args: Any) -> Iterator[LLM]:
    options = {"verify": True, "host_memory": 0.01}
    with running_engine(model, prompt_modules=options, **ENGINE_ARGS, **engine_args) as llm:
        llm.add_schema(SCHEMA)
        yield llm


def generate(llm: LLM, prompts: list[str]) -> list[RequestOutput]:
    return llm.generate(prompts, greedy(0, max_tokens=8), use_tqdm=False)


def tokens(outputs: list[RequestOutput]) -> list[tuple[int, ...]]:
    return [tuple(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("is_async", [False, True])
def test_offloading_saves_no_block_that_modules_have_taken(
    model: Path, expected: list[tuple[int, ...]], is_async: bool
) -> None:
    """Blocks are saved some steps late: modules may have them by then, unless vLLM is told."""
    extra = {"spec_name": "LateOffloadingSpec", "spec_module_path": "tests.engine.late_offloading"}
    foreign = KVTransferConfig(kv_role="kv_both", kv_connector_extra_config=extra)
    scheduling = asynchronous_scheduling() if is_async else nullcontext()
    with scheduling, engine(model, kv_transfer_config=foreign, kv_offloading_size=0.01) as llm:
        assert scheduler_of(llm).defer_block_free == is_async
        check_under_pressure(llm, expected)


# From here on one engine runs; a process has one at a time.
@pytest.fixture(scope="module")
def llm(model: Path, folder: Path, expected: list[tuple[int, ...]]) -> Iterator[LLM]:
    foreign = KVTransferConfig(
        kv_connector="ExampleConnector",
        kv_role="kv_both",
        kv_connector_extra_config={"shared_storage_path": str(folder)},
    )
    with engine(model, kv_transfer_config=foreign) as llm:
        yield llm


def test_only_plain_prompts_go_to_the_other_connector(
    llm: LLM, folder: Path, expected: list[tuple[int, ...]]
) -> None:
    assert tokens(generate(llm, PML)) == expected[: len(PML)]
    assert not list(folder.iterdir()), "KV of a prompt with modules has gone to the other connector"
    assert tokens(generate(llm, PML + PLAIN)) == expected
    assert len(list(folder.iterdir())) == len(PLAIN)
    scheduler_of(llm).check_integrity()


def test_plain_prompts_come_back_from_the_other_connector(
    llm: LLM, expected: list[tuple[int, ...]]
) -> None:
    generate(llm, PLAIN)
    assert llm.reset_prefix_cache()
    outputs = generate(llm, PML + PLAIN)
    assert tokens(outputs) == expected
    for output in outputs[len(PML) :]:
        assert output.num_cached_tokens >= 32, "nothing was loaded from the other connector"
    scheduler_of(llm).check_integrity()


def test_both_under_pressure(llm: LLM, expected: list[tuple[int, ...]]) -> None:
    check_under_pressure(llm, expected)


def check_under_pressure(llm: LLM, expected: list[tuple[int, ...]]) -> None:
    """Modules, and what is computed behind them, take the blocks of plain prompts."""
    num_loaded = 0
    for seed in range(5):
        fresh = [random_text(Random(100 * seed + i), 120) for i in range(6)]
        computed = tokens(generate(llm, fresh))
        assert tokens(generate(llm, PML * 12)) == expected[: len(PML)] * 12
        assert llm.reset_prefix_cache()
        outputs = generate(llm, fresh + PML)
        assert tokens(outputs) == computed + expected[: len(PML)]
        num_loaded += sum(output.num_cached_tokens for output in outputs[: len(fresh)])
        scheduler_of(llm).check_integrity()
    assert num_loaded > 0, "nothing was loaded from the other connector"
