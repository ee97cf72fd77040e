"""The disk tier's files, in a worker: written and read in the background."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG

from vllm_promptcache.log import module_logger
from vllm_promptcache.worker.module_file import (
    SUFFIX,
    TEMPORARY_SUFFIX,
    InvalidFileError,
    ModuleFile,
)

# Writes that wait for the disk; each holds a module in memory. More are left out.
MAX_NUM_WRITES = 64
MAX_WRITE_BYTES = 1 << 30
# Files are counted after each so many writes.
_WRITES_BETWEEN_SWEEPS = 16
# Files that were begun this long ago are of processes that died.
_STALE_S = 3600
# After a write, files are deleted until the folder is this much below its limit.
_SPARE = 0.05

logger = module_logger(__name__)


@dataclass(slots=True)
class DiskStore:
    """A worker's shards of modules, in files named by their keys, in a folder named by what else
    they depend on.

    Whatever goes wrong with a file costs an encode and a line in the log. Several workers and
    servers may share a folder; each deletes what is too much of all. Of a module, the files of some
    workers may be gone and those of others not: it is absent then (`DiskTier`).

    Attributes:
        root: The folder that the user gave.
        max_bytes: What the files of all models there may take; those not used longest go first.
        compute_fingerprint: Returns the fingerprint of the worker's part of the model as it is now.
    """

    root: Path
    max_bytes: int
    compute_fingerprint: Callable[[], str]
    _fingerprint: str | None = None
    _executor: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, "prompt-module-files")
    )
    _reads: dict[bytes, Future[ModuleFile | None]] = field(default_factory=dict)
    # With the bytes that each holds.
    _writes: dict[Future[None], int] = field(default_factory=dict)
    _num_written: int = 0
    _forgotten: list[bytes] = field(default_factory=list)

    def forget_model(self) -> None:
        """The model may change: what is read or written from now on depends on what it is then.

        What is being read is answered as absent.
        """
        self._fingerprint = None
        self._forgotten += self._reads
        self._reads.clear()

    def clear(self) -> None:
        """The same, and what was asked for before is not answered: nobody waits for it."""
        self.forget_model()
        self._forgotten.clear()

    def read(self, key: bytes) -> None:
        """Begins to read a module, which is not being read."""
        path, fingerprint = self._path(key)
        self._reads[key] = self._executor.submit(_read, path, key, fingerprint)

    def take_read(self) -> tuple[list[ModuleFile], list[bytes]]:
        """Returns the modules that have been read since, and the keys of those that cannot be."""
        done = {key: future for key, future in self._reads.items() if future.done()}
        for key in done:
            del self._reads[key]
        found = {key: future.result() for key, future in done.items()}
        absent = [key for key, module in found.items() if module is None] + self._forgotten
        self._forgotten = []
        return [module for module in found.values() if module is not None], absent

    def write(self, module: ModuleFile) -> None:
        """Begins to write a module."""
        self._writes = {f: size for f, size in self._writes.items() if not f.done()}
        num_bytes = sum(self._writes.values()) + module.blocks.nbytes
        if self._writes and (len(self._writes) >= MAX_NUM_WRITES or num_bytes > MAX_WRITE_BYTES):
            return
        path, fingerprint = self._path(module.key)
        future = self._executor.submit(self._write, module, path, fingerprint)
        self._writes[future] = module.blocks.nbytes

    def close(self) -> None:
        """Waits until all is written."""
        self._executor.shutdown()

    def _write(self, module: ModuleFile, path: Path, fingerprint: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            module.write(path, fingerprint)
            if self._num_written % _WRITES_BETWEEN_SWEEPS == 0:
                _delete_least_recent(self.root, self.max_bytes)
            self._num_written += 1
        except Exception as error:
            # Not the error itself: what was said once is remembered, with all that it refers to.
            reason = (isinstance(error, OSError) and error.strerror) or type(error).__name__
            logger.warning_once("Prompt modules cannot be kept in %s: %s", self.root, reason)

    def _path(self, key: bytes) -> tuple[Path, str]:
        if self._fingerprint is None:
            self._fingerprint = self.compute_fingerprint()
        return self.root / self._fingerprint[:16] / f"{key.hex()}{SUFFIX}", self._fingerprint


def _read(path: Path, key: bytes, fingerprint: str) -> ModuleFile | None:
    try:
        if os.path.lexists(path) and not S_ISREG(path.stat().st_mode):
            # To read a pipe would keep all others waiting.
            raise InvalidFileError("it is no file")
        module = ModuleFile.read(path, key, fingerprint)
    except Exception as error:  # whatever is in a file, the engine goes on
        # safetensors calls a file that it may not open missing as well.
        if isinstance(error, FileNotFoundError) and not os.path.lexists(path):
            return None
        logger.warning("The prompt module in %s is encoded again: %s", path, error)
        return None
    with suppress(OSError):
        os.utime(path)  # used: goes later
    return module


def _delete_least_recent(root: Path, max_bytes: int) -> None:
    """Deletes files until they fit, and what writers that died have left."""
    files, total = [], 0
    for path in root.glob("*/*"):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue  # another server was faster
        if not S_ISREG(stat.st_mode):
            continue
        if path.suffix == TEMPORARY_SUFFIX and time.time() - stat.st_mtime > _STALE_S:
            path.unlink(missing_ok=True)
        elif path.suffix == SUFFIX:
            files.append((stat.st_mtime, stat.st_size, path))
            total += stat.st_size
    if total <= max_bytes:
        return
    for _, size, path in sorted(files):
        if total <= max_bytes * (1 - _SPARE):
            break
        path.unlink(missing_ok=True)
        total -= size
