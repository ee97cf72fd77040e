"""Modules that leave the KV cache and come back: from host memory, from disk, after a restart.

The engine's model is small, and each answer is compared with the first one, which was computed with
nothing to come back. Fingerprints of all modules are checked whenever they are mapped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from tests.engine.harness import greedy, running_engine, scheduler_of
from tests.families import LLAMA
from tests.generators import random_text
from tests.worker.test_module_file import damaged
from vllm_promptcache import LLM

NUM_MODULES = 25
NUM_ROUNDS = 4
# The pool holds a third of the modules.
ENGINE_ARGS = {
    "block_size": 32,
    "num_gpu_blocks_override": 40,
    "kv_cache_memory_bytes": 16 << 20,
    "max_model_len": 1024,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return LLAMA.save(tmp_path_factory.mktemp("model"))


@contextmanager
def engine(model: Path, **options: Any) -> Iterator[LLM]:
    """An engine that knows a schema of `NUM_MODULES` documents."""
    rng = Random(0)
    texts = [random_text(rng, rng.randint(20, 90)) for _ in range(NUM_MODULES)]
    modules = "".join(f'<module name="m{i}">{text}</module>' for i, text in enumerate(texts))
    engine_args = ENGINE_ARGS | options.pop("engine_args", {})
    with running_engine(model, prompt_modules={"verify": True, **options}, **engine_args) as llm:
        llm.add_schema(f'<schema name="s"><union>{modules}</union></schema>')
        yield llm


def answers(llm: LLM, seed: int = 0) -> list[tuple[int, ...]]:
    """Tokens of a prompt for each module, all prompts at once."""
    prompts = [f'<prompt schema="s"><m{i}/> Which?</prompt>' for i in range(NUM_MODULES)]
    order = list(range(NUM_MODULES))
    Random(seed).shuffle(order)
    outputs = llm.generate([prompts[i] for i in order], greedy(0, max_tokens=4), use_tqdm=False)
    found = {i: tuple(o.outputs[0].token_ids) for i, o in zip(order, outputs, strict=True)}
    scheduler_of(llm).check_integrity()
    return [found[i] for i in range(NUM_MODULES)]


def wait_for_files(folder: Path) -> list[Path]:
    """All modules' files, once they are written."""
    for _ in range(200):
        if len(found := sorted(folder.glob("*/*.safetensors"))) == NUM_MODULES:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{len(found)} files of {NUM_MODULES}")


def test_modules_come_back_from_host_memory(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with engine(model, host_memory=0.1) as llm:
        first = answers(llm)
        residency = scheduler_of(llm).residency
        num_encodes = residency.encodes.num_started
        assert all(answers(llm, seed) == first for seed in range(1, 4))
        stats = residency.store.stats
        with capsys.disabled():
            print(f"\n{num_encodes} encodes, {stats}")
        assert residency.encodes.num_started == num_encodes == NUM_MODULES
        assert stats.num_restores > NUM_MODULES
        check_stats(llm)


def check_stats(llm: LLM) -> None:
    """What users are told is what happened."""
    stats = llm.module_store.stats()
    _, *modules = stats["schemas"]["s"]
    assert {module["tier"] for module in modules} <= {"kv_cache", "host"}
    assert {module["num_encodes"] for module in modules} == {1}
    assert sum(module["num_restores"] for module in modules) == stats["num_restores"]
    assert sum(module["num_hits"] for module in modules) > 0
    assert all(module["idle_s"] < 600 for module in modules)
    resident = [module["num_blocks"] for module in modules if module["tier"] == "kv_cache"]
    assert stats["num_blocks"]["kv_cache"] == sum(resident) <= 39
    assert stats["num_bytes"]["host"] == stats["num_blocks"]["host"] * 32768


def test_modules_are_there_after_a_restart(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with engine(model, dir=str(tmp_path)) as llm:
        first = answers(llm)
        wait_for_files(tmp_path)
    # What comes from a file is verified from then on.
    with engine(model, dir=str(tmp_path)) as llm:
        assert answers(llm) == first
        residency = scheduler_of(llm).residency
        with capsys.disabled():
            print(f"\n{residency.encodes.num_started} encodes, {residency.store.stats}")
        assert residency.encodes.num_started == 0
        assert residency.store.stats.num_fetches >= NUM_MODULES
    other = {"dtype": "bfloat16"}
    with engine(model, dir=str(tmp_path), verify=False, engine_args=other) as llm:
        answers(llm)
        assert scheduler_of(llm).residency.encodes.num_started == NUM_MODULES


def test_damaged_files_are_encoded_again(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No answer changes, whatever is in the files."""
    rng, num_damaged = Random(1), 0
    with engine(model, dir=str(tmp_path), verify=False) as llm:
        first = answers(llm)
        residency = scheduler_of(llm).residency
        for _ in range(NUM_ROUNDS):
            files = wait_for_files(tmp_path)
            time.sleep(0.2)  # the last rename of a file that was there before
            contents = [path.read_bytes() for path in files]
            for path, whole in zip(files, contents, strict=True):
                path.write_bytes(damaged(whole, rng.choice(contents), rng.randrange(4), rng))
                num_damaged += 1
            assert llm.reset_prefix_cache()
            assert answers(llm) == first
        with capsys.disabled():
            print(f"\n{num_damaged} damaged files: {residency.encodes.num_started} encodes")
        # A file may have got its own contents, or a bit that does not matter was flipped.
        assert residency.encodes.num_started > 0.8 * (num_damaged + NUM_MODULES)


def test_other_weights_find_other_files(model: Path, tmp_path: Path) -> None:
    with engine(model, dir=str(tmp_path), verify=False) as llm:
        first = answers(llm)
        wait_for_files(tmp_path)
        llm.apply_model(halve_weights)
        llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(())})
        llm.reset_prefix_cache()
        residency = scheduler_of(llm).residency
        num_encodes = residency.encodes.num_started
        assert answers(llm) != first
        assert residency.encodes.num_started == num_encodes + NUM_MODULES
        assert len(list(tmp_path.iterdir())) == 2


def halve_weights(model: torch.nn.Module) -> None:
    """Makes another model of it."""
    for number, parameter in enumerate(model.parameters()):
        parameter.data.mul_(0.5 + number % 3 / 4)


def test_a_folder_that_vanishes_stops_nothing(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "modules"
    with engine(model, dir=str(folder)) as llm:
        first = answers(llm)
        wait_for_files(folder)
        for path in folder.glob("*/*"):
            path.unlink()
        for path in folder.iterdir():
            path.rmdir()
        folder.rmdir()
        folder.write_text("in the way")
        assert answers(llm, 1) == first
