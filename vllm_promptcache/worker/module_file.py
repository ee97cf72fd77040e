"""Files of encoded modules: safetensors with a fingerprint, written whole or not at all."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

FORMAT = "1"
"""Changes with the meaning of a file; files of another format are ignored."""

SUFFIX = ".safetensors"
TEMPORARY_SUFFIX = ".partial"
_BLOCKS = "blocks"


class InvalidFileError(Exception):
    """A file that is not what it should be; it says why."""


@dataclass(frozen=True, slots=True)
class ModuleFile:
    """An encoded module.

    Attributes:
        key: The module's key.
        num_tokens: Its kept tokens.
        blocks: Its blocks of all layers, bit by bit, `[num_layers, num_blocks, num_elements]`.
    """

    key: bytes
    num_tokens: int
    blocks: torch.Tensor

    def write(self, path: Path, fingerprint: str) -> int:
        """Writes the file; whoever reads it meanwhile sees the old one or none.

        Args:
            path: Where to.
            fingerprint: Of all that the blocks depend on beside the key.

        Returns:
            Its size in bytes.

        Raises:
            OSError: It cannot be written; nothing is left behind.
        """
        metadata = _metadata(self.key, fingerprint) | {
            "num_tokens": str(self.num_tokens),
            "sha256": _digest(self.blocks, self.num_tokens),
        }
        data = save({_BLOCKS: self.blocks}, metadata)
        temporary = path.with_name(
            f"{path.stem}.{os.getpid()}.{threading.get_ident()}{TEMPORARY_SUFFIX}"
        )
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return len(data)

    @classmethod
    def read(cls, path: Path, key: bytes, fingerprint: str) -> ModuleFile:
        """Reads a file and checks all of it.

        Raises:
            FileNotFoundError: There is none.
            InvalidFileError: It is damaged, or of another module, model or format.
            OSError: It cannot be read.
        """
        try:
            with safe_open(path, "pt") as file:
                # A copy: the tensor is a mapping of the file, which may change once it is checked.
                metadata, blocks = file.metadata() or {}, file.get_tensor(_BLOCKS).clone()
        except SafetensorError as error:
            raise InvalidFileError(str(error)) from None
        for name, expected in _metadata(key, fingerprint).items():
            if metadata.get(name) != expected:
                raise InvalidFileError(f"its {name} is {metadata.get(name)!r}, not {expected!r}")
        num_tokens = metadata.get("num_tokens", "")
        if not num_tokens.isdecimal() or metadata.get("sha256") != _digest(blocks, int(num_tokens)):
            raise InvalidFileError("its checksum is wrong")
        return cls(key, int(num_tokens), blocks)


def _metadata(key: bytes, fingerprint: str) -> dict[str, str]:
    return {"format": FORMAT, "key": key.hex(), "fingerprint": fingerprint}


def _digest(blocks: torch.Tensor, num_tokens: int) -> str:
    digest = sha256(f"{num_tokens} {tuple(blocks.shape)} {blocks.dtype}".encode())
    digest.update(blocks.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
