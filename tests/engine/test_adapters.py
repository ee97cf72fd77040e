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
from tests.engine.agreement import difference
from tests.engine.explanations import without_modules
from tests.engine.harness import greedy, running_engine, scheduler_of
from tests.families import LLAMA
from tests.reference import Reference
from vllm_promptcache import LLM

DOCUMENT = "the river runs behind the house and the old road to the town " * 12
SCHEMA = f"""<schema name="s">
<module name="a">{DOCUMENT}</module><module name="b">of {DOCUMENT}</module>
</schema>"""
PROMPT = '<prompt schema="s"><a/><b/> Which road?</prompt>'
KINDS = ("modules", "prefill", "plain")
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


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Of the prompts: with modules, the same as one prefill, or plain text."""
    name: str = request.param
    return name


def ask(llm: LLM, adapter: LoRARequest | None, kind: str) -> RequestOutput:
    prompt = DOCUMENT if kind == "plain" else PROMPT
    reuse, params = kind != "prefill", greedy(20, max_tokens=4)
    (output,) = llm.generate(prompt, params, lora_request=adapter, reuse=reuse, use_tqdm=False)
    scheduler_of(llm).check_integrity()
    return output


def check(llm: LLM, output: RequestOutput, reference: Reference, kind: str) -> None:
    explanation: dict[str, Any] = llm.explain(PROMPT).to_dict()
    plans = {"modules": explanation, "prefill": without_modules(explanation), "plain": None}
    found = difference(reference, output, plans[kind])
    assert found.is_within(2e-4), found


def first_id(test: int, kind: str) -> int:
    """Ids of adapters that no other test uses."""
    return 100 * test + 10 * KINDS.index(kind) + 1


def is_from_cache(output: RequestOutput) -> bool:
    """Whether most of a prompt was there before."""
    return output.num_cached_tokens > len(output.prompt_token_ids) / 2


def test_each_adapter_answers_with_its_own_modules(
    llm: LLM, model: Path, references: Mapping[int, Reference], tmp_path: Path, kind: str
) -> None:
    """Of one name, as from two clients; also after all modules were in host memory."""
    first, second = (save_adapter(model, tmp_path / str(seed), seed) for seed in SEEDS)
    lora_id = first_id(1, kind)
    adapters = {
        0: None,
        1: LoRARequest("a", lora_id, str(first)),
        2: LoRARequest("a", lora_id + 2, str(second)),
    }
    for is_warm in (False, True, True):
        for seed, adapter in adapters.items():
            output = ask(llm, adapter, kind)
            check(llm, output, references[seed], kind)
            assert is_from_cache(output) == is_warm or seed == 0


def test_an_adapter_that_is_loaded_in_place_reads_nothing_old(
    llm: LLM, model: Path, references: Mapping[int, Reference], tmp_path: Path, kind: str
) -> None:
    """As `/v1/load_lora_adapter` with `load_inplace`: same name, id and path, other weights."""
    folder, lora_id = tmp_path / "adapter", first_id(2, kind)
    adapter = LoRARequest("in place", lora_id, str(folder))
    for seed in (1, 2, 1):
        save_adapter(model, folder, seed)
        again = LoRARequest("in place", lora_id, str(folder), load_inplace=True)
        llm.llm_engine.add_lora(again)
        for is_warm in (False, True):
            output = ask(llm, adapter, kind)
            check(llm, output, references[seed], kind)
            assert is_from_cache(output) == is_warm


def test_requests_that_load_in_place_read_nothing_old(
    llm: LLM, model: Path, references: Mapping[int, Reference], tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "adapter"
    adapter = LoRARequest("each time", first_id(3, kind), str(folder), load_inplace=True)
    for seed in (1, 2, 1):
        save_adapter(model, folder, seed)
        outputs = [ask(llm, adapter, kind) for _ in range(3)]
        for output in outputs:
            check(llm, output, references[seed], kind)
        assert not is_from_cache(outputs[0])
        assert is_from_cache(outputs[2])


def test_an_adapter_that_is_unloaded_and_loaded_reads_nothing_old(
    llm: LLM, model: Path, references: Mapping[int, Reference], tmp_path: Path, kind: str
) -> None:
    """As over HTTP, where each load has an id of its own; and with the same id."""
    folder, first = tmp_path / "adapter", first_id(4, kind)
    for seed, lora_id in ((1, first), (2, first + 1), (1, first + 1)):
        save_adapter(model, folder, seed)
        llm.llm_engine.remove_lora(lora_id)
        adapter = LoRARequest("again", lora_id, str(folder))
        llm.llm_engine.add_lora(adapter)
        for is_warm in (False, True):
            output = ask(llm, adapter, kind)
            check(llm, output, references[seed], kind)
            assert is_from_cache(output) == is_warm


def test_an_adapter_whose_files_are_written_anew_reads_nothing_old(
    llm: LLM, model: Path, references: Mapping[int, Reference], tmp_path: Path, kind: str
) -> None:
    """Nobody says so: the workers go on with what they have until they need the room for it."""
    folder, lora_id = tmp_path / "adapter", first_id(5, kind)
    other = save_adapter(model, tmp_path / "other", 2)
    adapter = LoRARequest("written anew", lora_id, str(save_adapter(model, folder, 1)))
    check(llm, ask(llm, adapter, kind), references[1], kind)
    save_adapter(model, folder, 2)
    for _ in range(2):
        check(llm, ask(llm, adapter, kind), references[1], kind)
    ask(llm, LoRARequest("other", lora_id + 1, str(other)), kind)
    outputs = [ask(llm, adapter, kind) for _ in range(3)]
    for output in outputs:
        check(llm, output, references[2], kind)
    assert is_from_cache(outputs[2])
