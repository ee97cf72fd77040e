"""The files of LoRA adapters, as the scheduler and the workers see them; both must agree on it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from hashlib import sha256

import msgspec
from huggingface_hub import try_to_load_from_cache

_CONFIG_FILE = "adapter_config.json"
# What vLLM reads of an adapter's folder.
_PREFIXES = ("adapter_", "new_embeddings")


def fingerprint_files(lora_path: str) -> bytes:
    """Returns a digest that changes whenever an adapter's files are written; reads none of them.

    Args:
        lora_path: As in vLLM's request: a folder, or the name of a repository, of which the copy on
            this machine counts. Where there is neither, the digest is that of no files.
    """
    folder = os.path.expanduser(lora_path)
    if not os.path.isdir(folder):
        folder = _cached_folder(lora_path)
    try:
        files = sorted(_stamps(os.scandir(folder))) if folder else []
    except OSError:
        files = []  # they are just being replaced
    return sha256(msgspec.msgpack.encode(files)).digest()


def _cached_folder(repository: str) -> str:
    try:
        config = try_to_load_from_cache(repository, _CONFIG_FILE)
    except (OSError, ValueError):  # no name of a repository, or a cache that cannot be read
        return ""
    return os.path.dirname(config) if isinstance(config, str) else ""


def _stamps(entries: Iterable[os.DirEntry[str]]) -> list[tuple[bytes | int, ...]]:
    found: list[tuple[bytes | int, ...]] = []
    for entry in entries:
        if entry.name.startswith(_PREFIXES):
            stat = entry.stat()
            times = stat.st_mtime_ns, stat.st_ctime_ns
            name = os.fsencode(entry.name)
            found.append((name, stat.st_dev, stat.st_ino, stat.st_size, *times))
    return found
