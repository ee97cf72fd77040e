"""The schema folder: what the server compiles at start, and where posted schemas are kept.

Several API servers share it. Each looks for changes before it plans, which takes a microsecond;
what has changed is compiled by whoever needs it, so that nobody else waits. The schemas that are in
memory serve on whatever becomes of the folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path
from stat import S_ISREG
from threading import RLock
from typing import TypeAlias

from vllm_promptcache.entrypoints.schema_files import (
    SCHEMA_SUFFIXES,
    UnreadableError,
    read_schema,
    write_schema,
)
from vllm_promptcache.errors import ClientError, ConflictError, PromptCacheError, ServerError
from vllm_promptcache.log import module_logger
from vllm_promptcache.plan.compiled import Compiled
from vllm_promptcache.plan.schemas import Schemas
from vllm_promptcache.pml import parse_schema, quote

# A change this recent may be followed by another one with the same time stamp.
_SETTLED_NS = 100_000_000
# The folder does not tell when a file that could not be read can be read.
_SECONDS_BETWEEN_TRIES = 1.0

_Stamp: TypeAlias = tuple[int, int, int]
_UNREADABLE: _Stamp = (0, 0, 0)

logger = module_logger(__name__)


class SchemaFolder:
    """Keeps schemas and the files of a folder the same. May be used by many threads.

    Changes are noticed when files come, go or are replaced as a whole; a file that is edited in
    place is noticed at the next start. A file, or the folder, that cannot be read is logged once,
    and what it held stays as it was until it can be read again.

    Args:
        path: The folder.
        schemas: The schemas.
    """

    def __init__(self, path: Path, schemas: Schemas) -> None:
        if not path.is_dir():
            raise ClientError(f"the schema folder {str(path)!r} does not exist")
        self.path = path
        self._schemas = schemas
        # Held while a file is compiled, then the other one while the result is taken over.
        self._compiling = RLock()
        self._lock = RLock()
        self._seen_ns = -1
        self._looked = 0.0
        self._files: dict[Path, _Stamp] = {}
        self._names: dict[Path, str] = {}
        # Files that have changed and are not compiled yet.
        self._waiting: dict[Path, _Stamp] = {}
        # What was logged last of a file or the folder that is not as it should be.
        self._complaints: dict[Path, str] = {}

    def load(self) -> None:
        """Compiles all files, in the order of their names.

        Raises:
            PMLError: A file is no valid schema.
            ClientError: The folder or a file cannot be read.
        """
        try:
            self._waiting = self._scan()
        except OSError as error:
            raise ClientError(
                f"cannot read the schema folder {str(self.path)!r}: {error}"
            ) from None
        for path in sorted(self._waiting):
            self._load(path)

    def look(self) -> bool:
        """Notices what has changed; schemas whose files are gone are forgotten.

        Returns:
            Whether files wait to be compiled by `sync`.
        """
        with self._lock:
            try:
                self._look()
            except OSError as error:
                self._complain(self.path, f"cannot be read, its schemas stay as they are: {error}")
            else:
                self._settle(self.path)
            return bool(self._waiting)

    def sync(self, name: str | None = None) -> None:
        """Takes over what has changed: compiles files that wait.

        A file that cannot be used is logged, and its schema stays as it was.

        Args:
            name: Only what concerns this schema; everything if it is None or there is no such
                schema, since a file may hold a schema of another name than its own.
        """
        if not self.look():
            return
        if name is not None:
            self._load_all(name)
            if self._schemas.find(name) is not None:
                return
        self._load_all(None)

    def names(self) -> Collection[str]:
        """Names of the schemas that there are, or may be in files that wait; compiles nothing."""
        if not self.look():
            return self._schemas.names
        with self._lock:
            return {*self._schemas.names, *(path.stem for path in self._waiting)}

    def store(self, compiled: Compiled, text: str) -> None:
        """Keeps a schema that was posted, in a file of its name, and adds it to the others.

        Raises:
            ConflictError: The schema comes from another file.
            ServerError: The file cannot be written; nothing has changed.
        """
        name = compiled.schema.name
        with self._lock:
            path = self._file_of(name)
            try:
                stamp = _stamp(write_schema(path, text))
            except (OSError, UnicodeError) as error:
                raise _refusal(name, "kept", error) from None
            self._waiting.pop(path, None)
            self._files[path], self._names[path] = stamp, name
            self._schemas.adopt(compiled)

    def remove(self, name: str) -> None:
        """Removes the file of a schema, and the schema.

        Raises:
            ConflictError: The schema comes from another file.
            ServerError: The file cannot be removed; nothing has changed.
        """
        with self._lock:
            path = self._file_of(name)
            try:
                # Without it, the file would be back when the folder is.
                os.stat(self.path)
                path.unlink(missing_ok=True)
            except OSError as error:
                raise _refusal(name, "removed", error) from None
            self._waiting.pop(path, None)
            self._files.pop(path, None)
            self._names.pop(path, None)
            self._schemas.remove(name)

    def check(self, name: str) -> None:
        """Checks that a schema may be stored and removed. Raises as `store`."""
        with self._lock:
            self._file_of(name)

    def _file_of(self, name: str) -> Path:
        path = self.path / f"{name}.pml"
        if path.parent != self.path:
            raise ClientError(f"{quote(name)} is no name of a schema")
        try:
            is_taken = path.exists() and self._names.get(path) != name
        except OSError as error:  # such as a name that is too long
            raise _refusal(name, "kept", error) from None
        if is_taken:
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

    def _look(self) -> None:
        changed_ns = os.stat(self.path).st_mtime_ns
        if changed_ns == self._seen_ns and not self._is_due():
            return
        files = self._scan()
        for path in (self._files.keys() | self._waiting.keys()) - files.keys():
            self._forget(path)
        self._waiting |= {p: stamp for p, stamp in files.items() if self._files.get(p) != stamp}
        if time.time_ns() - changed_ns > _SETTLED_NS:
            self._seen_ns = changed_ns

    def _is_due(self) -> bool:
        """Whether what is not as it should be is to be tried again."""
        is_late = time.monotonic() - self._looked > _SECONDS_BETWEEN_TRIES
        return is_late and bool(self._complaints)

    def _scan(self) -> dict[Path, _Stamp]:
        self._looked = time.monotonic()
        with os.scandir(self.path) as entries:
            return {
                Path(entry.path): _stamp_of(entry)
                for entry in entries
                if entry.name.endswith(SCHEMA_SUFFIXES)
            }

    def _load_all(self, name: str | None) -> None:
        with self._lock:
            paths = [
                path
                for path in sorted(self._waiting)
                if name is None or name in (path.stem, self._names.get(path))
            ]
        for path in paths:
            try:
                self._load(path)
            except PromptCacheError as error:
                self._refuse(path, error)
            else:
                self._settle(path)

    def _load(self, path: Path) -> None:
        """Compiles a file that waits, unless another thread just has."""
        with self._compiling:
            stamp = self._waiting.get(path)
            if stamp is None:
                return
            schema = parse_schema(read_schema(path), name=str(path), base_dir=path.parent)
            is_known = self._schemas.holds(schema)
            compiled = None if is_known else self._schemas.compile(schema)
            with self._lock:
                # Meanwhile this server may have written or removed the file: that is newer.
                if path in self._waiting:
                    self._take(path, stamp, schema.name, compiled)

    def _take(self, path: Path, stamp: _Stamp, name: str, compiled: Compiled | None) -> None:
        if compiled is not None:
            self._schemas.adopt(compiled)
        if self._names.get(path, name) != name:
            self._forget_schema(path)
        self._names[path] = name
        self._done(path, stamp)

    def _done(self, path: Path, stamp: _Stamp) -> None:
        self._files[path] = stamp
        if self._waiting.get(path) == stamp:
            del self._waiting[path]

    def _refuse(self, path: Path, error: PromptCacheError) -> None:
        """Leaves what a file held as it was; one that cannot be read is tried again."""
        with self._lock:
            if (stamp := self._waiting.get(path)) is None:
                return
            if isinstance(error, UnreadableError):
                stamp = self._waiting[path] = _UNREADABLE
            self._done(path, stamp)
            if os.path.lexists(path):
                self._complain(path, f"cannot be used, its last version stays: {error}")

    def _forget(self, path: Path) -> None:
        for known in (self._files, self._waiting, self._complaints):
            known.pop(path, None)
        self._forget_schema(path)

    def _forget_schema(self, path: Path) -> None:
        name = self._names.pop(path, None)
        if name is not None and name not in self._names.values() and name in self._schemas.names:
            self._schemas.remove(name)

    def _complain(self, path: Path, problem: str) -> None:
        if self._complaints.get(path) != problem:
            self._complaints[path] = problem
            logger.error("%s %s", path, problem)

    def _settle(self, path: Path) -> None:
        if self._complaints and self._complaints.pop(path, None) is not None:
            logger.info("%s can be used again.", path)


def _refusal(name: str, what: str, error: Exception) -> ServerError:
    reason = getattr(error, "strerror", None) or type(error).__name__
    message = f"schema {quote(name)} could not be {what}: {reason}"
    return ServerError(message, "the server's schema folder must be there and writable")


def _stamp(stat: os.stat_result) -> _Stamp:
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _stamp_of(entry: os.DirEntry[str]) -> _Stamp:
    try:
        stat = entry.stat()
    except OSError:  # a link to nowhere, or a file that has just gone
        return _UNREADABLE
    return _stamp(stat) if S_ISREG(stat.st_mode) else _UNREADABLE
