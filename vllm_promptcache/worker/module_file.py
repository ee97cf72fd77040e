"""Files of encoded modules: safetensors with a fingerprint, written whole or not at all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from secrets import token_hex

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from vllm_promptcache.kernels.transfers import HostCopy

FORMAT = "2"
"""Changes with the meaning of a file; files of another format are ignored."""

SUFFIX = ".safetensors"
TEMPORARY_SUFFIX = ".partial"
_BLOCKS = "blocks"


class InvalidFileError(Exception):
    """A file that is not what it should be; it says why."""


@dataclass(frozen=True, slots=True)
class ModuleFile:
    """An encoded module, or a worker's shard of it.

    Attributes:
        key: The module's key.
        num_tokens: Its kept tokens.
        encode_id: Of the encode that it is of: the same in the files of all workers.
        blocks: Its blocks of all layers, bit by bit, `[num_layers, num_blocks, num_elements]`.
    """

    key: bytes
    num_tokens: int
    encode_id: bytes
    blocks: HostCopy

    def write(self, path: Path, fingerprint: str) -> int:
        """Writes the file, when the blocks are there; others see the old one or none meanwhile.

        Args:
            path: Where to.
            fingerprint: Of all that the blocks depend on beside the key.

        Returns:
            Its size in bytes.

        Raises:
            OSError: It cannot be written; nothing is left behind.
        """
        num_tokens, encode_id = str(self.num_tokens), self.encode_id.hex()
        blocks = self.blocks.wait()
        metadata = _metadata(self.key, fingerprint) | {
            "num_tokens": num_tokens,
            "encode_id": encode_id,
            "sha256": _digest(blocks, num_tokens, encode_id),
        }
        data = save({_BLOCKS: blocks}, metadata)
        # Not the process's id: other machines may write here, too.
        temporary = path.with_name(f"{path.stem}.{token_hex(8)}{TEMPORARY_SUFFIX}")
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
        num_tokens, encode_id = metadata.get("num_tokens", ""), metadata.get("encode_id", "")
        is_whole = metadata.get("sha256") == _digest(blocks, num_tokens, encode_id)
        if not is_whole or not num_tokens.isdecimal():
            raise InvalidFileError("its checksum is wrong")
        return cls(key, int(num_tokens), bytes.fromhex(encode_id), HostCopy.of(blocks))


def _metadata(key: bytes, fingerprint: str) -> dict[str, str]:
    return {"format": FORMAT, "key": key.hex(), "fingerprint": fingerprint}


def _digest(blocks: torch.Tensor, num_tokens: str, encode_id: str) -> str:
    digest = sha256(f"{num_tokens} {encode_id} {tuple(blocks.shape)} {blocks.dtype}".encode())
    digest.update(blocks.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
