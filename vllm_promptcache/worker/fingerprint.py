"""Fingerprints: of the model that KV in a file depends on, and of KV itself, to verify it."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

import torch
from cachetools import LRUCache
from vllm.distributed import get_pp_group, get_tp_group

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


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of the model a worker computes.

    Attributes:
        tensor_rank: Which of the workers that share the heads of a layer.
        tensor_size: How many they are.
        pipeline_rank: Which of the stages that share the layers.
        pipeline_size: How many they are.
    """

    tensor_rank: int
    tensor_size: int
    pipeline_rank: int
    pipeline_size: int

    @classmethod
    def of_this_worker(cls) -> Shard:
        """That of the worker in this process, which vLLM has given its ranks."""
        heads, stages = get_tp_group(), get_pp_group()
        return cls(heads.rank_in_group, heads.world_size, stages.rank_in_group, stages.world_size)


def model_fingerprint(
    weights: Iterable[tuple[str, torch.Tensor]],
    kv_caches: dict[str, torch.Tensor],
    layout: bytes,
    shard: Shard,
) -> str:
    """Returns a digest that differs where KV does, as far as a worker can tell.

    Reads all weights as they are in memory: about a second for each two GB. What the KV depends on
    of other workers' weights it cannot tell: see `ModuleFile.encode_id`.

    Args:
        weights: The model's parameters and buffers by name, as far as the worker has them.
        kv_caches: KV cache of each of its layers, `[num_blocks, ...]`.
        layout: Where the KV of a slot lies in a block.
        shard: Which part of the model these are.
    """
    digest = sha256(FORMAT.encode() + layout + repr(shard).encode())
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
