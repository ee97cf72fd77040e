"""The schema folder: what the server compiles at start, and where posted schemas are kept.

Several API servers share it: each looks for changes before it plans.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import RLock
from typing import TypeAlias

from vllm_promptcache.errors import ClientError, ConflictError, PromptCacheError, ServerError
from vllm_promptcache.log import module_logger
from vllm_promptcache.plan import Planner
from vllm_promptcache.pml import parse_schema, quote

SCHEMA_SUFFIXES = (".pml", ".xml")
# A change this recent may be followed by another one with the same time stamp.
_SETTLED_NS = 100_000_000

_Stamp: TypeAlias = tuple[int, int, int]

logger = module_logger(__name__)


def read_schema(path: Path) -> str:
    """Reads a schema file.

    Raises:
        ClientError: It cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ClientError(f"cannot read the schema {str(path)!r}: {error}") from None


class SchemaFolder:
    """Keeps a planner's schemas and the files of a folder the same.

    Changes are noticed when files come, go or are replaced as a whole; a file that is edited in
    place is noticed at the next start.

    Args:
        path: The folder.
        planner: Compiles the schemas.
    """

    def __init__(self, path: Path, planner: Planner) -> None:
        if not path.is_dir():
            raise ClientError(f"the schema folder {str(path)!r} does not exist")
        self.path = path
        self._planner = planner
        self._lock = RLock()
        self._seen_ns = -1
        self._files: dict[Path, _Stamp] = {}
        self._names: dict[Path, str] = {}

    def load(self) -> None:
        """Compiles all files, in the order of their names.

        Raises:
            PMLError: A file is no valid schema.
        """
        with self._lock:
            for path, stamp in sorted(self._scan().items()):
                self._load(path, stamp)

    def sync(self) -> None:
        """Takes over what has changed since; costs a microsecond where nothing has.

        A file that is broken now is logged, and its schema stays as it was.
        """
        changed_ns = os.stat(self.path).st_mtime_ns
        if changed_ns == self._seen_ns:
            return
        with self._lock:
            files = self._scan()
            for path in self._files.keys() - files.keys():
                self._forget(path)
            for path, stamp in sorted(files.items()):
                if self._files.get(path) != stamp:
                    self._try_load(path, stamp)
            if time.time_ns() - changed_ns > _SETTLED_NS:
                self._seen_ns = changed_ns

    def store(self, name: str, text: str) -> None:
        """Keeps a schema that was posted, in a file of its name.

        Raises:
            ConflictError: The schema comes from another file.
            ServerError: The file cannot be written.
        """
        with self._lock:
            path = self._file_of(name)
            try:
                _write(path, text)
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or type(error).__name__
                raise ServerError(f"schema {quote(name)} could not be kept: {reason}") from None
            self._files[path], self._names[path] = _stamp(os.stat(path)), name

    def remove(self, name: str) -> None:
        """Removes the file of a schema.

        Raises:
            ConflictError: The schema comes from another file.
        """
        with self._lock:
            path = self._file_of(name)
            path.unlink(missing_ok=True)
            self._files.pop(path, None)
            self._names.pop(path, None)

    def check(self, name: str) -> None:
        """Checks that a schema may be stored and removed. Raises as `store`."""
        self._file_of(name)

    def _file_of(self, name: str) -> Path:
        path = self.path / f"{name}.pml"
        if path.parent != self.path:
            raise ClientError(f"{quote(name)} is no name of a schema")
        if path.exists() and self._names.get(path) != name:
            raise ConflictError(
                f"the file {quote(path.name)} is there, and holds something else",
                "change that file, or choose another name",
            )
        others = [file for file, known in self._names.items() if known == name and file != path]
        if others:
            raise ConflictError(
                f"schema {quote(name)} comes from the file {quote(others[0].name)}",
                "change that file, or choose another name",
            )
        return path

    def _scan(self) -> dict[Path, _Stamp]:
        with os.scandir(self.path) as entries:
            return {
                Path(entry.path): _stamp(entry.stat())
                for entry in entries
                if entry.name.endswith(SCHEMA_SUFFIXES)
            }

    def _load(self, path: Path, stamp: _Stamp) -> None:
        schema = parse_schema(read_schema(path), name=str(path), base_dir=path.parent)
        self._planner.add_schema(schema)
        if self._names.get(path, schema.name) != schema.name:
            self._forget(path)
        self._files[path], self._names[path] = stamp, schema.name

    def _try_load(self, path: Path, stamp: _Stamp) -> None:
        try:
            self._load(path, stamp)
        except PromptCacheError as error:
            self._files[path] = stamp
            logger.error("A schema file cannot be used, its last version stays: %s", error)

    def _forget(self, path: Path) -> None:
        del self._files[path]
        name = self._names.pop(path, None)
        if name is not None and name not in self._names.values() and name in self._planner.schemas:
            self._planner.remove_schema(name)


def _write(path: Path, text: str) -> None:
    """Writes a file so that readers see all of it or the one before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _stamp(stat: os.stat_result) -> _Stamp:
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
