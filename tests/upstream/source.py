"""vLLM's tests, which only its source distribution has."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from importlib.metadata import version
from pathlib import Path
from urllib.request import Request, urlopen

INDEX = "https://pypi.org/simple"
# The tests, what they import, and the settings of pytest; not their fixtures, which need more.
WANTED = (
    "pyproject.toml",
    "tests/__init__.py",
    "tests/v1/__init__.py",
    "tests/v1/core/",
    "tests/v1/kv_connector/__init__.py",
    "tests/v1/kv_connector/unit/__init__.py",
    "tests/v1/kv_connector/unit/utils.py",
)
TIMEOUT_S = 180


def vllm_tests(folder: Path) -> Path:
    """Downloads vLLM's tests into `folder`, unless they are there; returns where they lie.

    They are of the version that is installed. pip would not do: it builds what it downloads.

    Raises:
        OSError: The index cannot be reached.
        ValueError: What came is not what the index has promised.
    """
    name = f"vllm-{version('vllm').partition('+')[0]}"
    if not (root := folder / name).exists():
        _extract(_download(f"{name}.tar.gz"), name, folder)
    return root


def _download(name: str) -> bytes:
    index = os.environ.get("PIP_INDEX_URL", INDEX).rstrip("/")
    listing = Request(f"{index}/vllm/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urlopen(listing, timeout=TIMEOUT_S) as answer:
        files = {file["filename"]: file for file in json.load(answer)["files"]}
    with urlopen(files[name]["url"], timeout=TIMEOUT_S) as answer:
        archive: bytes = answer.read()
    if hashlib.sha256(archive).hexdigest() != files[name]["hashes"]["sha256"]:
        raise ValueError(f"{name} is damaged")
    return archive


def _extract(archive: bytes, name: str, folder: Path) -> None:
    wanted = tuple(f"{name}/{path}" for path in WANTED)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        found = [file for file in files if file.isfile() and file.name.startswith(wanted)]
        files.extractall(folder, found, filter="data")
