"""Faults of the machine below a running engine: its disk, its clock, its sleep.

All tests share an engine that keeps modules in host memory and on disk. Each answer is compared
with that of an engine that keeps them nowhere.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.distributed.kv_transfer import get_kv_transfer_group

from tests.engine.crash import is_damaged
from tests.engine.harness import greedy, scheduler_of
from tests.engine.test_tiers import NUM_MODULES, answers, engine, halve_weights
from tests.families import LLAMA
from vllm_promptcache import LLM
from vllm_promptcache.entrypoints.ended import RequestsEnded

DAY_S = 24 * 3600.0
NOBODY = 65534

Answers = list[tuple[int, ...]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return LLAMA.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(model: Path) -> Answers:
    with engine(model) as llm:
        return answers(llm)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("modules")


# The engine without tiers has to be gone when this one starts.
@pytest.fixture(scope="module")
def shared(model: Path, folder: Path, expected: Answers) -> Iterator[LLM]:
    # What is read from disk may have been encoded in another batch than what was encoded last.
    with engine(model, dir=str(folder), host_memory=0.1, verify=False) as llm:
        yield llm


@pytest.fixture
def llm(shared: LLM, folder: Path) -> LLM:
    """The engine, with no module anywhere."""
    assert shared.reset_prefix_cache()
    settle()
    for entry in folder.iterdir():
        shutil.rmtree(entry)
    return shared


def settle() -> None:
    """Waits until the engine's worker has read and written all files that it was to."""
    executor = get_kv_transfer_group()._worker.host.disk._executor
    executor.submit(lambda: None).result()


def files_in(folder: Path) -> list[Path]:
    """All that lies in the folder of the model, once it is written."""
    settle()
    return list(folder.glob("*/*"))


def counts(llm: LLM) -> tuple[int, int]:
    """Modules encoded and read from disk so far."""
    residency = scheduler_of(llm).residency
    return residency.encodes.num_started, residency.store.stats.num_fetches


@contextmanager
def counted(llm: LLM, *, num_encodes: int, num_fetches: int) -> Iterator[None]:
    """Checks how many modules are encoded and read meanwhile."""
    before = counts(llm)
    yield
    assert counts(llm) == (before[0] + num_encodes, before[1] + num_fetches)


def test_a_full_disk_keeps_no_file_until_there_is_room(
    llm: LLM, folder: Path, expected: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off = []
    write_bytes = Path.write_bytes

    def fill_disk(path: Path, data: bytes) -> None:
        """Writes as much as there is room for."""
        cut_off.append(write_bytes(path, data[: len(data) // 2]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill_disk)
        with counted(llm, num_encodes=NUM_MODULES, num_fetches=0):
            assert answers(llm) == expected
        assert files_in(folder) == []
        assert len(cut_off) == NUM_MODULES
        assert min(cut_off) > 0
        # Host memory serves on; what is only on disk has to be encoded.
        with counted(llm, num_encodes=0, num_fetches=0):
            assert answers(llm, 1) == expected
        llm.reset_prefix_cache()
        with counted(llm, num_encodes=NUM_MODULES, num_fetches=0):
            assert answers(llm, 2) == expected
        assert files_in(folder) == []
    llm.reset_prefix_cache()
    with counted(llm, num_encodes=NUM_MODULES, num_fetches=0):
        assert answers(llm, 3) == expected
    files = files_in(folder)
    assert len(files) == NUM_MODULES
    assert not any(map(is_damaged, files))
    llm.reset_prefix_cache()
    with counted(llm, num_encodes=0, num_fetches=NUM_MODULES):
        assert answers(llm, 4) == expected


@contextmanager
def folders_for_files(folder: Path) -> Iterator[None]:
    """A folder where each file was."""
    for path in folder.glob("*/*"):
        path.unlink()
        path.mkdir()
    yield
    for path in folder.glob("*/*"):
        path.rmdir()


@contextmanager
def a_file_for_the_folder(folder: Path) -> Iterator[None]:
    """A file where the model's folder was."""
    (inner,) = folder.iterdir()
    shutil.rmtree(inner)
    inner.write_text("in the way")
    yield
    inner.unlink()


@contextmanager
def no_permission(folder: Path) -> Iterator[None]:
    """The model's folder may not be entered; for root, by being somebody else."""
    (inner,) = folder.iterdir()
    user = os.geteuid()
    inner.chmod(0)
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        inner.chmod(0o700)
        shutil.rmtree(inner)


@pytest.mark.parametrize(
    "fault", [folders_for_files, a_file_for_the_folder, no_permission], ids=lambda f: f.__name__
)
def test_what_cannot_be_read_is_encoded_again(
    llm: LLM, folder: Path, expected: Answers, fault: Callable[[Path], Any]
) -> None:
    answers(llm)
    assert len(files_in(folder)) == NUM_MODULES
    llm.reset_prefix_cache()
    with fault(folder), counted(llm, num_encodes=NUM_MODULES, num_fetches=0):
        assert answers(llm, 1) == expected
        settle()
    assert files_in(folder) == []
    llm.reset_prefix_cache()
    with counted(llm, num_encodes=NUM_MODULES, num_fetches=0):
        assert answers(llm, 2) == expected
    settle()
    llm.reset_prefix_cache()
    with counted(llm, num_encodes=0, num_fetches=NUM_MODULES):
        assert answers(llm, 3) == expected


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
def test_a_jump_of_the_wall_clock_neither_ends_nor_prolongs_a_pin(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    for name, ttl in (("long", "1h"), ("short", "2s")):
        schema = f'<schema name="{name}"><module name="m">The {name} one.</module></schema>'
        llm.add_schema(schema, pin=True, ttl=ttl)
    assert pinned(llm) == {"long", "short"}
    wall_clock = time.time
    monkeypatch.setattr(time, "time", lambda: wall_clock() + jump_s)
    time.sleep(2)
    assert pinned(llm) == {"long"}
    llm.remove_schema("long")
    llm.remove_schema("short")


def pinned(llm: LLM) -> set[str]:
    """Schemas with a pinned module."""
    schemas = llm.module_store.stats()["schemas"]
    return {name for name, modules in schemas.items() if any(m["pinned"] for m in modules)}


@pytest.mark.parametrize("level", [None, 1, 2], ids=["reset", "sleep 1", "sleep 2"])
def test_behind_a_reset_or_a_sleep_modules_come_from_disk(
    llm: LLM, folder: Path, expected: Answers, level: int | None
) -> None:
    """On a CPU, vLLM resets its caches and leaves the weights where they are, at both levels."""
    for seed in range(2):
        assert answers(llm, seed) == expected
    assert len(files_in(folder)) == NUM_MODULES
    residency = scheduler_of(llm).residency
    assert len(residency.tiers.host) > 0
    if level is None:
        assert llm.reset_prefix_cache()
    else:
        llm.sleep(level)
        llm.wake_up()
    assert not residency.store.modules
    assert len(residency.tiers.host) == 0
    with counted(llm, num_encodes=0, num_fetches=NUM_MODULES):
        assert answers(llm, 2) == expected


@pytest.mark.parametrize("level", [1, 2])
def test_weights_that_change_in_a_sleep_get_nothing_of_the_old_ones(
    llm: LLM, folder: Path, expected: Answers, level: int
) -> None:
    """The engine falls asleep while files are read."""
    answers(llm)
    assert len(files_in(folder)) == NUM_MODULES
    llm.reset_prefix_cache()
    ids = llm.enqueue(prompts(), greedy(0), use_tqdm=False)
    llm.llm_engine.step()
    llm.llm_engine.abort_request(ids, internal=True)
    llm.sleep(level)
    (weights,) = llm.apply_model(copied_weights)
    llm.apply_model(halve_weights)
    llm.wake_up()
    with counted(llm, num_encodes=NUM_MODULES, num_fetches=0):
        changed = answers(llm)
    assert changed != expected
    assert changed == without_modules(llm)

    llm.sleep(level)
    llm.apply_model(lambda model: model.load_state_dict(weights))
    llm.wake_up()
    with counted(llm, num_encodes=0, num_fetches=NUM_MODULES):
        assert answers(llm) == expected


def prompts() -> list[str]:
    """Those of `answers`."""
    return [f'<prompt schema="s"><m{i}/> Which?</prompt>' for i in range(NUM_MODULES)]


def without_modules(llm: LLM) -> Answers:
    """The same answers, as the model gives them: a module at the beginning sees all there is."""
    outputs = llm.generate(prompts(), greedy(0, max_tokens=4), reuse=False, use_tqdm=False)
    return [tuple(output.outputs[0].token_ids) for output in outputs]


def copied_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers as they are now."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_whatever_is_wrong_with_a_plan_only_its_request_ends(
    llm: LLM, expected: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise IndexError("no such span")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler_of(llm).residency, "add", fail)
        with pytest.raises(RequestsEnded, match="cannot be served: IndexError"):
            llm.generate('<prompt schema="s"><m0/> Which?</prompt>', use_tqdm=False)
    assert answers(llm) == expected
