"""Fingerprints: of the model that KV in a file depends on, and of KV itself, to verify it."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import torch
from cachetools import LRUCache

from vllm_promptcache.errors import ServerError
from vllm_promptcache.worker.module_file import FORMAT

MAX_NUM_FINGERPRINTS = 65_536
"""Modules whose KV can be verified, about 20 MB; those not used longest are forgotten."""


class Fingerprints:
    """What the KV of modules was when it was encoded, by key."""

    def __init__(self) -> None:
        self._by_key: LRUCache[bytes, int] = LRUCache(MAX_NUM_FINGERPRINTS)
        self._has_forgotten = False

    def __contains__(self, key: bytes) -> bool:
        return key in self._by_key

    def __len__(self) -> int:
        return len(self._by_key)

    def take(self, key: bytes, fingerprint: int) -> None:
        """Takes note of what a module's KV is."""
        self._has_forgotten |= len(self) == MAX_NUM_FINGERPRINTS and key not in self
        self._by_key[key] = fingerprint

    def check(self, key: bytes, fingerprint: int) -> None:
        """Compares a module's KV with what it was; takes note of it, if that was forgotten.

        Raises:
            ServerError: It is not the same, or was never there.
        """
        if key not in self and self._has_forgotten:
            self.take(key, fingerprint)
        elif self._by_key.get(key) != fingerprint:
            raise ServerError(f"the KV of module {key.hex()} is not what was encoded")


def model_fingerprint(
    weights: Iterable[tuple[str, torch.Tensor]], kv_caches: dict[str, torch.Tensor], layout: bytes
) -> str:
    """Returns a digest that is the same for two workers whose KV is interchangeable.

    Reads all weights as they are in memory: about a second for each two GB.

    Args:
        weights: The model's parameters and buffers by name.
        kv_caches: KV cache of each layer, `[num_blocks, ...]`.
        layout: Where the KV of a slot lies in a block.
    """
    digest = sha256(FORMAT.encode() + layout)
    for name, cache in kv_caches.items():
        digest.update(f"{name} {cache.dtype} {tuple(cache.shape[1:])}".encode())
    with ThreadPoolExecutor() as pool:
        # In order; only the hashing runs side by side.
        for part in pool.map(_digest, *zip(*weights, strict=True)):
            digest.update(part)
    return digest.hexdigest()


def weights_of(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """All that a model computes with, by name."""
    return [*model.named_parameters(), *model.named_buffers()]


def _digest(name: str, tensor: torch.Tensor) -> bytes:
    digest = sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.digest()
