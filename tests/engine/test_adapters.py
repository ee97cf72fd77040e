"""Prompts with LoRA adapters: KV is read by requests with the same weights only.

Each answer is compared with that of the model into which the adapter's weights are merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from vllm import RequestOutput
from vllm.lora.request import LoRARequest

from tests.adapters import RANK, save_adapter, save_merged
from tests.engine.harness import difference, greedy, running_engine, scheduler_of, without_modules
from tests.families import LLAMA
from tests.reference import Reference
from vllm_promptcache import LLM

DOCUMENT = "the river runs behind the house and the old road to the town " * 12
SCHEMA = f"""<schema name="s">
<module name="a">{DOCUMENT}</module><module name="b">of {DOCUMENT}</module>
</schema>"""
PROMPT = '<prompt schema="s"><a/><b/> Which road?</prompt>'
SEEDS = (1, 2)
# The pool holds the modules of two adapters; what leaves it goes to host memory.
ENGINE_ARGS = {
    "block_size": 32,
    "num_gpu_blocks_override": 40,
    "kv_cache_memory_bytes": 16 << 20,
    "max_model_len": 1024,
    "enable_lora": True,
    "max_lora_rank": RANK,
    "max_loras": 1,
    "max_cpu_loras": 1,
    "compilation_config": {"mode": 0},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return LLAMA.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def references(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Reference]:
    """The model with each adapter merged into it, by the adapter's seed; 0 is the model itself."""
    folder = tmp_path_factory.mktemp("merged")
    merged = {seed: Reference(save_merged(model, folder / str(seed), seed)) for seed in SEEDS}
    return {0: Reference(model), **merged}


@pytest.fixture(scope="module")
def llm(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    modules = {"host_memory": 0.1, "dir": str(tmp_path_factory.mktemp("files"))}
    with running_engine(model, prompt_modules=modules, **ENGINE_ARGS) as llm:
        llm.add_schema(SCHEMA)
        yield llm


def ask(llm: LLM, adapter: LoRARequest | None, *, reuse: bool = True) -> RequestOutput:
    (output,) = llm.generate(
        PROMPT, greedy(20, max_tokens=4), lora_request=adapter, reuse=reuse, use_tqdm=False
    )
    scheduler_of(llm).check_integrity()
    return output


def check(llm: LLM, output: RequestOutput, reference: Reference, *, reuse: bool = True) -> None:
    explanation: dict[str, Any] = llm.explain(PROMPT).to_dict()
    expected = explanation if reuse else without_modules(explanation)
    found = difference(reference, output, expected)
    assert found.is_within(2e-4), found


def is_from_cache(output: RequestOutput) -> bool:
    """Whether most of a prompt was there before."""
    return output.num_cached_tokens > len(output.prompt_token_ids) / 2


@pytest.mark.parametrize("reuse", [True, False])
def test_each_adapter_answers_with_its_own_modules(
    llm: LLM, model: Path, references: Mapping[int, Reference], tmp_path: Path, reuse: bool
) -> None:
    """Of one name, as from two clients; also after all modules were in host memory."""
    first, second = (save_adapter(model, tmp_path / str(seed), seed) for seed in SEEDS)
    base = 10 + 10 * reuse
    adapters = {
        0: None,
        1: LoRARequest("a", base + 1, str(first)),
        2: LoRARequest("a", base + 3, str(second)),
    }
    for is_warm in (False, True, True):
        for seed, adapter in adapters.items():
            output = ask(llm, adapter, reuse=reuse)
            check(llm, output, references[seed], reuse=reuse)
            assert is_from_cache(output) == is_warm or seed == 0


@pytest.mark.parametrize("reuse", [True, False])
def test_an_adapter_that_is_loaded_in_place_reads_nothing_old(
    llm: LLM, model: Path, references: Mapping[int, Reference], tmp_path: Path, reuse: bool
) -> None:
    """As `/v1/load_lora_adapter` with `load_inplace`: same name, id and path, other weights."""
    folder, engine = tmp_path / "adapter", llm.llm_engine
    adapter = LoRARequest("in place", 30 + reuse, str(folder))
    for seed in (1, 2, 1):
        save_adapter(model, folder, seed)
        engine.add_lora(LoRARequest("in place", 30 + reuse, str(folder), load_inplace=True))
        for is_warm in (False, True):
            output = ask(llm, adapter, reuse=reuse)
            check(llm, output, references[seed], reuse=reuse)
            assert is_from_cache(output) == is_warm


@pytest.mark.parametrize("reuse", [True, False])
def test_requests_that_load_in_place_read_nothing_old(
    llm: LLM, model: Path, references: Mapping[int, Reference], tmp_path: Path, reuse: bool
) -> None:
    folder = tmp_path / "adapter"
    adapter = LoRARequest("each time", 40 + reuse, str(folder), load_inplace=True)
    for seed in (1, 2, 1):
        save_adapter(model, folder, seed)
        outputs = [ask(llm, adapter, reuse=reuse) for _ in range(3)]
        for output in outputs:
            check(llm, output, references[seed], reuse=reuse)
        assert not is_from_cache(outputs[0])
        assert is_from_cache(outputs[2])


@pytest.mark.parametrize("reuse", [True, False])
def test_an_adapter_that_is_unloaded_and_loaded_reads_nothing_old(
    llm: LLM, model: Path, references: Mapping[int, Reference], tmp_path: Path, reuse: bool
) -> None:
    """As over HTTP, where each load has an id of its own; and with the same id."""
    folder, first = tmp_path / "adapter", 50 + 10 * reuse
    for seed, lora_id in ((1, first), (2, first + 1), (1, first + 1)):
        save_adapter(model, folder, seed)
        llm.llm_engine.remove_lora(lora_id)
        adapter = LoRARequest("again", lora_id, str(folder))
        llm.llm_engine.add_lora(adapter)
        for is_warm in (False, True):
            output = ask(llm, adapter, reuse=reuse)
            check(llm, output, references[seed], reuse=reuse)
            assert is_from_cache(output) == is_warm


@pytest.mark.parametrize("reuse", [True, False])
def test_an_adapter_whose_files_are_written_anew_reads_nothing_old(
    llm: LLM, model: Path, references: Mapping[int, Reference], tmp_path: Path, reuse: bool
) -> None:
    """Nobody says so: the workers go on with what they have until they need the room for it."""
    folder, other = tmp_path / "adapter", save_adapter(model, tmp_path / "other", 2)
    adapter = LoRARequest("written anew", 70 + reuse, str(save_adapter(model, folder, 1)))
    check(llm, ask(llm, adapter, reuse=reuse), references[1], reuse=reuse)
    save_adapter(model, folder, 2)
    for _ in range(2):
        check(llm, ask(llm, adapter, reuse=reuse), references[1], reuse=reuse)
    ask(llm, LoRARequest("other", 80 + reuse, str(other)), reuse=reuse)
    outputs = [ask(llm, adapter, reuse=reuse) for _ in range(3)]
    for output in outputs:
        check(llm, output, references[2], reuse=reuse)
    assert is_from_cache(outputs[2])
