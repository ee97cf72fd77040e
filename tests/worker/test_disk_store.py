"""The disk tier's files in the background: faults cost an encode, never an answer."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vllm_promptcache.worker.disk_store import DiskStore
from vllm_promptcache.worker.module_file import ModuleFile

from .test_module_file import KEY, OTHER_KEY, make_file


class Model:
    """A model that changes."""

    fingerprint = "one" * 20


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def store(tmp_path: Path, model: Model) -> Iterator[DiskStore]:
    store = DiskStore(tmp_path, 1 << 30, lambda: model.fingerprint)
    yield store
    store.close()


def read(store: DiskStore, *keys: bytes) -> tuple[list[ModuleFile], list[bytes]]:
    """Reads modules and waits for the answers."""
    for key in keys:
        store.read(key)
    found: list[ModuleFile] = []
    absent: list[bytes] = []
    while len(found) + len(absent) < len(keys):
        more_found, more_absent = store.take_read()
        found, absent = found + more_found, absent + more_absent
        time.sleep(0.001)
    return found, absent


def test_a_module_is_there_for_another_store(tmp_path: Path, store: DiskStore) -> None:
    store.write(make_file())
    store.close()
    again = DiskStore(tmp_path, 1 << 30, lambda: Model.fingerprint)
    (found,), absent = read(again, KEY, OTHER_KEY)
    assert torch.equal(found.blocks, make_file().blocks)
    assert absent == [OTHER_KEY]


def test_another_model_finds_nothing(store: DiskStore, model: Model) -> None:
    store.write(make_file())
    model.fingerprint = "two" * 20
    assert len(read(store, KEY)[0]) == 1  # nobody said that it has changed
    store.forget_model()
    assert read(store, KEY) == ([], [KEY])


def test_a_read_that_was_forgotten_is_answered_as_absent(store: DiskStore) -> None:
    store.write(make_file())
    store.read(KEY)
    store.forget_model()
    assert store.take_read() == ([], [KEY])
    assert store.take_read() == ([], [])


def test_a_damaged_file_is_replaced(tmp_path: Path, store: DiskStore) -> None:
    store.write(make_file())
    read(store, KEY)
    (path,) = tmp_path.glob("*/*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert read(store, KEY) == ([], [KEY])
    store.write(make_file())
    assert len(read(store, KEY)[0]) == 1


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = DiskStore(tmp_path / "file", 1 << 30, lambda: Model.fingerprint)
    store.write(make_file())
    assert read(store, KEY) == ([], [KEY])
    store.close()


def test_the_files_not_used_longest_are_deleted(tmp_path: Path, model: Model) -> None:
    size = make_file().write(tmp_path / "probe", "model")
    store = DiskStore(tmp_path, int(3.5 * size), lambda: model.fingerprint)
    keys = [bytes([i]) * 32 for i in range(20)]
    for number, key in enumerate(keys[:16]):
        store.write(make_file(key))
        read(store, key)
        path = next(tmp_path.glob(f"*/{key.hex()}.safetensors"))
        os.utime(path, (number, number))
    read(store, keys[2])  # used again
    for key in keys[16:]:
        store.write(make_file(key))
    store.close()
    left = {path.stem for path in tmp_path.glob("*/*.safetensors")}
    assert keys[2].hex() in left
    assert keys[0].hex() not in left
    assert len(left) <= 3 + 3  # and those since the last sweep


def test_what_writers_that_died_left_is_swept(tmp_path: Path, store: DiskStore) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    old, new = folder / "a.partial", folder / "b.partial"
    for path, age in ((old, 7200), (new, 10)):
        path.write_text("half")
        os.utime(path, (time.time() - age, time.time() - age))
    store.write(make_file())
    store.close()
    assert not old.exists()
    assert new.exists()


def test_a_directory_among_the_files_does_not_stop_the_sweep(tmp_path: Path, model: Model) -> None:
    store = DiskStore(tmp_path, 0, lambda: model.fingerprint)
    folder = tmp_path / model.fingerprint[:16]
    (folder / "stray.safetensors").mkdir(parents=True)
    store.write(ModuleFile(KEY, 9, torch.zeros(2, 3, 4)))
    store.close()
    assert [path.name for path in folder.iterdir()] == ["stray.safetensors"]
