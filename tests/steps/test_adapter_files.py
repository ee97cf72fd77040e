"""Fingerprints of an adapter's files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_promptcache.steps.adapter_files import fingerprint_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_files_of_the_same_size_and_time_are_told_apart(folder: Path) -> None:
    path, before = folder / "adapter_model.safetensors", fingerprint_files(str(folder))
    stat = path.stat()
    path.write_bytes(b"others ")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint_files(str(folder)) != before


def test_what_is_no_weights_does_not_matter_and_a_missing_folder_is_no_error(folder: Path) -> None:
    before = fingerprint_files(str(folder))
    (folder / "README.md").write_text("An adapter.")
    assert fingerprint_files(str(folder)) == before
    nothing = fingerprint_files(str(folder / "none"))
    assert nothing == fingerprint_files("nobody/nothing") == fingerprint_files("no\x00path")
    assert nothing != before
