"""The host-memory tier in a worker: whatever comes from disk, or out of turn, it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from vllm_promptcache.kernels.reference import SlotCopier
from vllm_promptcache.steps.step import HostMove, ModuleBlocks
from vllm_promptcache.store import ReadModule
from vllm_promptcache.worker.disk_store import DiskStore
from vllm_promptcache.worker.host_store import HostStore
from vllm_promptcache.worker.module_file import ModuleFile

from .test_module_file import ENCODE_ID, KEY, MISSHAPEN, OTHER_KEY, forged

BLOCK_SIZE, NUM_ELEMENTS = 4, 24
MODULE = ModuleBlocks(KEY, (3, 1), 7)
READ = ReadModule(KEY, 7, 2, ENCODE_ID)


@pytest.fixture
def caches() -> list[torch.Tensor]:
    return [torch.randn(5, BLOCK_SIZE, NUM_ELEMENTS // BLOCK_SIZE) for _ in range(2)]


@pytest.fixture
def copier(caches: list[torch.Tensor]) -> SlotCopier:
    elements = torch.arange(NUM_ELEMENTS).view(BLOCK_SIZE, -1).T.contiguous()
    return SlotCopier(caches, elements)


@pytest.fixture
def host(tmp_path: Path, copier: SlotCopier) -> Iterator[HostStore]:
    disk = DiskStore(tmp_path, 1 << 30, lambda: "one" * 20)
    yield HostStore(copier, disk)
    disk.close()


def fetched(host: HostStore, *keys: bytes) -> tuple[list[ReadModule], list[bytes]]:
    """Asks for modules on disk and waits for the answers."""
    for key in keys:
        host.apply(HostMove("fetch", ModuleBlocks(key, (), 0)))
    found: list[ReadModule] = []
    absent: list[bytes] = []
    while len(found) + len(absent) < len(keys):
        more_found, more_absent = host.take_read()
        found, absent = found + more_found, absent + more_absent
        time.sleep(0.001)
    return found, absent


def test_what_is_kept_comes_back_from_disk(host: HostStore, caches: list[torch.Tensor]) -> None:
    host.keep(MODULE, ENCODE_ID)
    before = [cache[[3, 1]].clone() for cache in caches]
    assert fetched(host, KEY) == ([READ], [])
    host.apply(HostMove("restore", ModuleBlocks(KEY, (2, 4), 7)))
    for cache, blocks in zip(caches, before, strict=True):
        assert torch.equal(cache[[2, 4]], blocks)


@pytest.mark.parametrize("change", MISSHAPEN.values(), ids=MISSHAPEN)
def test_a_file_that_fits_no_block_is_absent_though_its_checksum_is_right(
    tmp_path: Path, host: HostStore, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    host.keep(MODULE, ENCODE_ID)
    fetched(host, KEY)
    (path,) = tmp_path.glob("*/*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(forged(whole, change(host.copier.read_blocks((3, 1)).wait())))
    assert len(ModuleFile.read(path, KEY, "one" * 20).key) == len(KEY)
    host.apply(HostMove("drop", ModuleBlocks(KEY, (), 0)))
    assert fetched(host, KEY) == ([], [KEY])
    path.write_bytes(whole)
    assert fetched(host, KEY) == ([READ], [])


def test_a_module_of_more_tokens_than_its_blocks_hold_is_absent(
    tmp_path: Path, host: HostStore
) -> None:
    host.keep(MODULE, ENCODE_ID)
    fetched(host, KEY)
    (path,) = tmp_path.glob("*/*.safetensors")
    for num_tokens in ("9", "4", "0"):
        blocks = host.copier.read_blocks((3, 1)).wait()
        path.write_bytes(forged(path.read_bytes(), blocks, num_tokens))
        assert fetched(host, KEY) == ([], [KEY])


def test_a_fetch_without_a_disk_is_answered_and_clears_nothing(copier: SlotCopier) -> None:
    host = HostStore(copier)
    host.apply(HostMove("save", MODULE))
    host.apply(HostMove("fetch", ModuleBlocks(OTHER_KEY, (), 0)))
    assert host.take_read() == ([], [OTHER_KEY])
    assert host.take_read() == ([], [])
    host.apply(HostMove("restore", ModuleBlocks(KEY, (2, 4), 7)))


def test_what_was_asked_for_before_a_clear_is_never_answered(copier: SlotCopier) -> None:
    host = HostStore(copier)
    host.apply(HostMove("fetch", ModuleBlocks(OTHER_KEY, (), 0)))
    host.apply(HostMove("clear", None))
    assert host.take_read() == ([], [])


def test_what_was_saved_is_not_written_over_by_what_was_read(
    host: HostStore, caches: list[torch.Tensor]
) -> None:
    """Other workers may lack their shards of it."""
    host.keep(MODULE, ENCODE_ID)
    for cache in caches:
        cache.fill_(1)
    host.apply(HostMove("save", MODULE))
    assert fetched(host, KEY) == ([READ], [])
    host.apply(HostMove("restore", ModuleBlocks(KEY, (2, 4), 7)))
    assert all((cache[[2, 4]] == 1).all() for cache in caches)


def test_a_move_that_means_nothing_clears_nothing(copier: SlotCopier) -> None:
    host = HostStore(copier)
    host.apply(HostMove("save", MODULE))
    host.apply(HostMove("unknown", MODULE))  # type: ignore[arg-type]
    host.apply(HostMove("save", None))
    host.apply(HostMove("restore", ModuleBlocks(KEY, (2, 4), 7)))
    assert host.num_clears == 0
    host.apply(HostMove("clear", None))
    assert host.num_clears == 1
