"""The disk tier's files in the background: faults cost an encode, never an answer."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event

import pytest
import torch
from safetensors.torch import save

from vllm_promptcache.kernels.transfers import HostCopy
from vllm_promptcache.worker import disk_store
from vllm_promptcache.worker.disk_store import DiskStore
from vllm_promptcache.worker.module_file import ModuleFile

from .test_module_file import ENCODE_ID, KEY, OTHER_KEY, blocks_in, forged, make_file


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
    assert torch.equal(found.blocks.wait(), make_file().blocks.wait())
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


def test_a_read_from_before_a_clear_is_never_answered(store: DiskStore) -> None:
    """The scheduler has forgotten it, too, and may ask again in the same step."""
    store.write(make_file())
    store.read(KEY)
    store.forget_model()
    store.read(KEY)
    store.clear()
    assert [found.key for found in read(store, KEY)[0]] == [KEY]
    store._executor.submit(lambda: None).result()
    assert store.take_read() == ([], [])


def test_workers_share_a_folder_and_its_limit_but_no_files(tmp_path: Path) -> None:
    size = make_file().write(tmp_path / "probe", "model")
    one, two = (
        DiskStore(tmp_path, int(2.5 * size), lambda rank=rank: rank * 20) for rank in ("one", "two")
    )
    for num_tokens, store in enumerate((one, two), 1):
        store.write(make_file(KEY, num_tokens))
    assert [read(store, KEY)[0][0].num_tokens for store in (one, two)] == [1, 2]
    for age, path in enumerate(sorted(tmp_path.glob("*/*"))):
        os.utime(path, (age, age))
    two._num_written = 0  # the next write sweeps
    two.write(make_file(OTHER_KEY))
    assert len(read(two, KEY, OTHER_KEY)[0]) == 2
    assert read(one, KEY) == ([], [KEY])
    one.close()
    two.close()


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
    store.write(ModuleFile(KEY, 9, ENCODE_ID, HostCopy.of(torch.zeros(2, 3, 4))))
    store.close()
    assert [path.name for path in folder.iterdir()] == ["stray.safetensors"]


ODD_FILES: Mapping[str, Callable[[bytes], bytes]] = {
    "more digits than Python reads": lambda whole: forged(whole, blocks_in(whole), "9" * 5000),
    "a number": lambda whole: save({"blocks": torch.tensor(1)}, metadata_of(whole)),
    "half bytes": lambda whole: save(
        {"blocks": torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)},
        metadata_of(whole),
    ),
    "no blocks": lambda whole: save({"other": blocks_in(whole)}, metadata_of(whole)),
}


def metadata_of(whole: bytes) -> dict[str, str]:
    header: dict[str, dict[str, str]] = json.loads(
        whole[8 : 8 + int.from_bytes(whole[:8], "little")]
    )
    return header["__metadata__"]


@pytest.mark.parametrize("make", ODD_FILES.values(), ids=ODD_FILES)
def test_whatever_is_in_a_file_the_module_is_absent(
    tmp_path: Path, store: DiskStore, make: Callable[[bytes], bytes]
) -> None:
    store.write(make_file())
    read(store, KEY)
    (path,) = tmp_path.glob("*/*.safetensors")
    path.write_bytes(make(path.read_bytes()))
    assert read(store, KEY, OTHER_KEY) == ([], [KEY, OTHER_KEY])
    store.write(make_file())
    assert len(read(store, KEY)[0]) == 1


def test_an_error_that_nobody_thought_of_costs_an_encode(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(ModuleFile, "read", fail)
    assert read(store, KEY) == ([], [KEY])
    monkeypatch.setattr(ModuleFile, "write", fail)
    store.write(make_file())
    assert read(store, OTHER_KEY) == ([], [OTHER_KEY])


def test_a_pipe_in_the_place_of_a_file_keeps_nobody_waiting(
    tmp_path: Path, store: DiskStore
) -> None:
    store.write(make_file())
    read(store, KEY)
    (path,) = tmp_path.glob("*/*.safetensors")
    path.unlink()
    os.mkfifo(path)
    store.read(KEY)
    answered: tuple[list[ModuleFile], list[bytes]] = [], []
    deadline = time.monotonic() + 30
    while not any(answered) and time.monotonic() < deadline:
        answered = store.take_read()
        time.sleep(0.001)
    # Lets a reader go that waits for the other end.
    with suppress(OSError):
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    assert answered == ([], [KEY])


def test_what_waits_to_be_written_is_bounded_in_bytes(
    tmp_path: Path, store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for one module, however large it is."""
    monkeypatch.setattr(disk_store, "MAX_WRITE_BYTES", 2 * make_file().blocks.nbytes)
    is_free = Event()
    store._executor.submit(is_free.wait)
    for number in range(5):
        store.write(make_file(bytes([number]) * 32))
    is_free.set()
    store.close()
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 2
    again = DiskStore(tmp_path, 1 << 30, lambda: Model.fingerprint)
    monkeypatch.setattr(disk_store, "MAX_WRITE_BYTES", 0)
    again.write(make_file(OTHER_KEY))
    again.close()
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 3
