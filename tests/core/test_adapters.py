"""Names of the weights that requests with LoRA adapters run with."""

from __future__ import annotations

from pathlib import Path

import pytest
from vllm.lora.request import LoRARequest
from vllm.v1.request import Request, RequestStatus

from vllm_promptcache.compat.requests import adapter_of
from vllm_promptcache.core import adapters as adapters_module
from vllm_promptcache.core.adapters import Adapters
from vllm_promptcache.steps.adapter_files import fingerprint_files
from vllm_promptcache.steps.step import WorkerReport

from .plans import module, raw_request, request, span
from .test_residency import Engine

A = module("a", 9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "adapter", b"weights")


def write(folder: Path, weights: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def with_adapter(user: Request, folder: Path, lora_int_id: int = 1, **options: bool) -> Request:
    user.lora_request = LoRARequest("adapter", lora_int_id, str(folder), **options)
    return user


def name_of(adapters: Adapters, folder: Path, request_id: str = "1", **options: bool) -> bytes:
    adapters.name(user := with_adapter(raw_request(request_id, 3, None), folder, **options))
    return adapter_of(user)


def test_a_request_without_an_adapter_has_no_name() -> None:
    Adapters().name(user := raw_request("1", 3, None))
    assert adapter_of(user) == b""


def test_names_differ_by_all_that_tells_weights_apart(tmp_path: Path, folder: Path) -> None:
    adapters, other = Adapters(), write(tmp_path / "other", b"weights")
    name = name_of(adapters, folder)
    assert name_of(adapters, folder, "2") == name
    assert name_of(adapters, other) != name
    adapters.name(user := with_adapter(raw_request("1", 3, None), folder, lora_int_id=2))
    assert adapter_of(user) != name
    user.lora_request.lora_name, user.lora_request.lora_int_id = "other", 1
    adapters.name(user)
    assert adapter_of(user) != name


@pytest.mark.parametrize("is_known", [False, True])
def test_a_name_never_comes_back_once_weights_were_loaded_again(
    folder: Path, is_known: bool
) -> None:
    adapters, names = Adapters(), set()
    for _ in range(3):
        names.add(name_of(adapters, folder))
        if is_known:
            adapters.loaded({1: fingerprint_files(str(folder))})
            names.add(name_of(adapters, folder))
        adapters.reloaded(1)
    assert len(names) == 3


def test_other_files_in_the_workers_memory_are_another_name(folder: Path) -> None:
    """Also if the old files come back, as where a link is pointed to and fro."""
    adapters, names = Adapters(), list[bytes]()
    for files in (b"one", b"one", b"two", b"one"):
        adapters.loaded({1: files})
        names.append(name_of(adapters, folder, load_inplace=True))
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert adapters.take_changed() == {1}


def test_while_files_are_not_what_was_loaded_nothing_is_shared(folder: Path) -> None:
    adapters, first = Adapters(), name_of(Adapters(), folder)
    adapters.loaded({1: fingerprint_files(str(folder))})
    assert name_of(adapters, folder) == first
    write(folder, b"others ")
    names = {name_of(adapters, folder, str(number)) for number in range(3)}
    assert len(names) == 3
    assert first not in names
    in_place = {name_of(adapters, folder, str(number), load_inplace=True) for number in range(3)}
    assert len(in_place) == 1


def test_forgotten_adapters_get_names_that_they_never_had(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters_module, "MAX_NUM_ADAPTERS", 2)
    adapters = Adapters()
    first = name_of(adapters, folder)
    for lora_int_id in range(2, 50):
        adapters.loaded({lora_int_id: b"files"})
    assert name_of(adapters, folder) != first
    assert len(adapters._by_id) == 2


def test_the_report_of_the_first_worker_counts() -> None:
    first, second = (WorkerReport([], [], adapters={1: files}) for files in (b"one", b"two"))
    assert first.aggregate(second).adapters == {1: b"one"}


def test_modules_of_another_generation_are_encoded_again_for_those_who_wait(folder: Path) -> None:
    engine = Engine()
    adapters = engine.residency.adapters
    users = [with_adapter(request(name, [span(A)], [A]), folder) for name in ("1", "2")]
    adapters.name(users[0])
    engine.add(users[0])
    assert engine.prepare() == [A]
    engine.run_encodes()
    assert engine.prepare() == []
    old = adapter_of(users[0])
    assert engine.residency.store.lookup(A.key + old) is not None
    adapters.reloaded(1)
    adapters.name(users[1])
    engine.add(users[1])
    engine.residency.follow_adapters(users)
    assert adapter_of(users[0]) == adapter_of(users[1]) != old
    assert engine.residency.map(engine.residency.get(users[0])) is None
    assert engine.prepare() == [A]
    assert engine.residency.store.pinned_block_ids == []


def test_an_encode_for_weights_that_are_gone_is_nobodys(folder: Path) -> None:
    engine = Engine()
    adapters = engine.residency.adapters
    adapters.name(user := with_adapter(request("1", [span(A)], [A]), folder))
    engine.add(user)
    assert engine.prepare() == [A]
    encode = engine.queue[0]
    adapters.reloaded(1)
    engine.residency.follow_adapters([encode, user])
    assert engine.residency.take_orphans() == [encode.request_id]
    assert engine.prepare() == [A]


def test_what_has_begun_keeps_its_name(folder: Path) -> None:
    engine = Engine()
    adapters = engine.residency.adapters
    plain = [with_adapter(raw_request(str(number), 3, None), folder) for number in range(3)]
    for user in plain:
        adapters.name(user)
    old = adapter_of(plain[0])
    plain[0].status = RequestStatus.RUNNING
    plain[1].num_computed_tokens = 2
    adapters.reloaded(1)
    engine.residency.follow_adapters(plain)
    assert [adapter_of(user) == old for user in plain] == [True, True, False]
