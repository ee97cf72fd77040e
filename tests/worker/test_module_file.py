"""Files of modules: what is written comes back, and nothing else does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load, save

from vllm_promptcache.kernels.transfers import HostCopy
from vllm_promptcache.worker.module_file import InvalidFileError, ModuleFile

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
ENCODE_ID = b"e" * 16
NUM_DAMAGED = 1000


def make_file(key: bytes = KEY, num_tokens: int = 9) -> ModuleFile:
    generator = torch.Generator().manual_seed(num_tokens)
    blocks = torch.randint(-(2**15), 2**15, (2, 3, 64), dtype=torch.int16, generator=generator)
    return ModuleFile(key, num_tokens, ENCODE_ID, HostCopy.of(blocks))


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    written, path = make_file(), tmp_path / "file.safetensors"
    size = written.write(path, "model")
    assert path.stat().st_size == size
    read = ModuleFile.read(path, KEY, "model")
    assert (read.key, read.num_tokens, read.encode_id) == (KEY, 9, ENCODE_ID)
    assert torch.equal(read.blocks.wait(), written.blocks.wait())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("key", "fingerprint", "message"),
    [(OTHER_KEY, "model", "its key is"), (KEY, "other model", "its fingerprint is 'model'")],
)
def test_a_file_of_something_else_is_refused(
    tmp_path: Path, key: bytes, fingerprint: str, message: str
) -> None:
    path = tmp_path / "file.safetensors"
    make_file().write(path, "model")
    with pytest.raises(InvalidFileError, match=message):
        ModuleFile.read(path, key, fingerprint)


def test_a_file_that_is_not_there_is_no_invalid_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ModuleFile.read(tmp_path / "none.safetensors", KEY, "model")


def test_a_thousand_damaged_files_give_back_nothing_wrong(tmp_path: Path) -> None:
    """Truncated, with flipped bits, with zeroes, with other files' names."""
    path, rng, good = tmp_path / "file.safetensors", Random(0), make_file()
    good.write(path, "model")
    whole = path.read_bytes()
    make_file(OTHER_KEY, 5).write(path, "model")
    other = path.read_bytes()
    num_refused = 0
    for number in range(NUM_DAMAGED):
        path.write_bytes(damaged(whole, other, number % 4, rng))
        try:
            read = ModuleFile.read(path, KEY, "model")
        except InvalidFileError:
            num_refused += 1
        else:
            # A flipped bit may be in what does not matter, such as white space of the header.
            assert torch.equal(read.blocks.wait(), good.blocks.wait())
            assert (read.num_tokens, read.encode_id) == (good.num_tokens, good.encode_id)
    assert num_refused > 0.98 * NUM_DAMAGED


def damaged(whole: bytes, other: bytes, kind: int, rng: Random) -> bytes:
    if kind == 0:
        return whole[: rng.randrange(len(whole))]
    if kind == 1:
        at, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
        return whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]
    if kind == 2:
        start = rng.randrange(len(whole))
        length = rng.randint(1, len(whole) - start)
        zeroed = whole[:start] + bytes(length) + whole[start + length :]
        return zeroed if zeroed != whole else b""
    return other


def forged(whole: bytes, blocks: torch.Tensor, num_tokens: str = "") -> bytes:
    """A file whose content was exchanged for another one, with a checksum that is right."""
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    metadata = header["__metadata__"] | ({"num_tokens": num_tokens} if num_tokens else {})
    parts = metadata["num_tokens"], metadata["encode_id"], tuple(blocks.shape), blocks.dtype
    digest = sha256(" ".join(map(str, parts)).encode())
    digest.update(blocks.contiguous().view(torch.uint8).numpy().data)
    return save({"blocks": blocks}, metadata | {"sha256": digest.hexdigest()})


def blocks_in(whole: bytes) -> torch.Tensor:
    """The blocks in a file that is as it was written."""
    return load(whole)["blocks"]


# What fits no KV cache that the blocks were read from.
MISSHAPEN: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "blocks too short": lambda blocks: blocks[:, :, :-8].contiguous(),
    "a layer less": lambda blocks: blocks[:-1].contiguous(),
    "a block more": lambda blocks: torch.cat([blocks, blocks[:, :1]], dim=1),
    "no blocks": lambda blocks: blocks[:, :0].contiguous(),
    "other numbers": lambda blocks: blocks.double(),
    "flat": lambda blocks: blocks.flatten(),
    "a dimension more": lambda blocks: blocks[..., None].contiguous(),
}


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make_file().write(tmp_path / "file.safetensors", "model")
    assert list(tmp_path.iterdir()) == []


def test_what_was_read_does_not_change_with_the_file(tmp_path: Path) -> None:
    path, module = tmp_path / "module", make_file()
    size = module.write(path, "model")
    read = ModuleFile.read(path, KEY, "model")
    with path.open("r+b") as file:
        file.write(bytes(size))
    assert torch.equal(read.blocks.wait(), module.blocks.wait())
