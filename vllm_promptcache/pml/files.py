"""Reads the files that `<module src="...">` names, and no others."""

from dataclasses import dataclass
from pathlib import Path

from vllm_promptcache.pml.source import code_point, forbidden_character, normalize_newlines


class FileRefusedError(Exception):
    """Why a file cannot be used; becomes a `PMLError` at the attribute that names it."""


@dataclass(slots=True)
class FileReader:
    """Reads text files below one folder.

    Attributes:
        base_dir: The folder; None refuses every file.
        num_bytes_left: How much all further files may have together.
    """

    base_dir: Path | None
    num_bytes_left: int

    def read(self, name: str) -> str:
        """Returns a file's text, normalised like a document.

        Raises:
            FileRefusedError: It lies outside of the folder, is too large or is no readable text.
        """
        data = self._read_bytes(self._resolve(name))
        try:
            text = normalize_newlines(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise FileRefusedError(f"is not UTF-8 (byte {error.start})") from None
        if bad := forbidden_character(text):
            raise FileRefusedError(f"holds the character {code_point(bad[0])}")
        return text

    def _resolve(self, name: str) -> Path:
        if self.base_dir is None:
            raise FileRefusedError("cannot be read: this schema was not loaded from a file")
        base_dir = self.base_dir.resolve()
        try:
            path = (base_dir / name).resolve()
        except (OSError, RuntimeError):  # RuntimeError: symbolic links in a circle.
            raise FileRefusedError("cannot be read") from None
        if not path.is_relative_to(base_dir):
            raise FileRefusedError("is outside of the schema's folder")
        return path

    def _read_bytes(self, path: Path) -> bytes:
        try:
            # A named pipe would block the server, a device would never end.
            if not path.is_file():
                raise FileRefusedError("does not exist or is not a regular file")
            with path.open("rb") as file:
                data = file.read(self.num_bytes_left + 1)
        except OSError as error:
            raise FileRefusedError(f"cannot be read: {error.strerror}") from None
        if len(data) > self.num_bytes_left:
            raise FileRefusedError(f"is larger than the {self.num_bytes_left} bytes left")
        self.num_bytes_left -= len(data)
        return data
