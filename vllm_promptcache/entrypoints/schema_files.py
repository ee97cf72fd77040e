"""Files of schemas: read with a limit, written as a whole."""

from __future__ import annotations

import os
from pathlib import Path

from vllm_promptcache.errors import ClientError
from vllm_promptcache.pml import DEFAULT_LIMITS

SCHEMA_SUFFIXES = (".pml", ".xml")


class UnreadableError(ClientError):
    """A file that cannot be read now, and may be later."""


def read_schema(path: Path) -> str:
    """Reads a schema file.

    Raises:
        UnreadableError: It cannot be read, or is larger than a document may be.
    """
    max_bytes = DEFAULT_LIMITS.max_document_bytes
    try:
        # A named pipe would block the server, a device would never end.
        if path.exists() and not path.is_file():
            raise OSError("it is no regular file")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise OSError(f"it has more than {max_bytes} bytes")
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableError(f"cannot read the schema {str(path)!r}: {error}") from None


def write_schema(path: Path, text: str) -> os.stat_result:
    """Writes a file so that readers see all of it or the one before.

    Returns:
        Of the file that was written, whoever replaces it right behind.

    Raises:
        OSError: It cannot be written; the one before is still there.
        UnicodeError: The text is none.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        stat = os.stat(temporary)
        os.replace(temporary, path)
        return stat
    finally:
        temporary.unlink(missing_ok=True)
