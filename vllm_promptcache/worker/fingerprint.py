"""What the KV in a file depends on beside the module's key: the model and the layout."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import torch

from vllm_promptcache.worker.module_file import FORMAT


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
