"""A folder of schemas and of the files that they include, with a digest of each file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG

from vllm_promptcache.errors import ClientError

MAX_NUM_FILES = 100_000
MAX_BYTES = 1 << 30
"""Of all files: each replica has a copy of them."""

_Stamp = tuple[int, int, int]


@dataclass(slots=True)
class FileTree:
    """Reads, writes and compares the files below a folder. Not for several threads at once.

    Hidden files are none of it: they are on their way.

    Attributes:
        root: The folder, which is there.
    """

    root: Path
    _known: dict[str, tuple[_Stamp, str]] = field(default_factory=dict)

    def digests(self) -> dict[str, str]:
        """The digest of each file as it is now, by its path inside the folder.

        Only what has changed since the last time is read.

        Raises:
            ClientError: There are too many files, or too large ones.
        """
        known, found, num_bytes = self._known, dict[str, tuple[_Stamp, str]](), 0
        for name, stamp in self._stamps():
            num_bytes += stamp[1]
            if len(found) >= MAX_NUM_FILES or num_bytes > MAX_BYTES:
                limits = f"{MAX_NUM_FILES} files or {MAX_BYTES} bytes"
                raise ClientError(f"the schema folder {str(self.root)!r} has more than {limits}")
            seen = known.get(name)
            digest = seen[1] if seen and seen[0] == stamp else self._digest(name)
            if digest is not None:
                found[name] = stamp, digest
        self._known = found
        return {name: digest for name, (_, digest) in found.items()}

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if it is not there."""
        try:
            return self._path(name).read_bytes()
        except OSError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Writes a file; who reads it sees all of it, or what was there before.

        Raises:
            OSError: It cannot be written.
        """
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        path = self.root / name
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise ClientError(f"{name!r} is no file of the schema folder")
        return path

    def _stamps(self) -> Iterator[tuple[str, _Stamp]]:
        for folder, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in (name for name in files if not name.startswith(".")):
                path = os.path.join(folder, name)
                try:
                    stat = os.stat(path)
                except OSError:  # it has just gone
                    continue
                if S_ISREG(stat.st_mode):
                    stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                    yield os.path.relpath(path, self.root), stamp

    def _digest(self, name: str) -> str | None:
        content = self.read(name)
        return None if content is None else digest_of(content)


def digest_of(content: bytes) -> str:
    """Tells files of different contents apart."""
    return sha256(content).hexdigest()
