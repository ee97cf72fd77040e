"""Plain torch versions of the kernels: the ground truth, and the path of devices without one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

Slots = npt.NDArray[np.int64]

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32}


class SlotCopier:
    """Copies the KV of slots in all layers.

    Args:
        kv_caches: KV cache of each layer, `[num_blocks, ...]`, contiguous, all alike.
        slot_elements: `[num_elements, block_size]`, from `probe_slot_elements`.
    """

    def __init__(self, kv_caches: list[torch.Tensor], slot_elements: torch.Tensor) -> None:
        # As integers: a copy must not care whether some bits are a NaN.
        bits = _BITS[kv_caches[0].element_size()]
        self._layers = [cache.view(bits).view(len(cache), -1) for cache in kv_caches]
        self._elements = slot_elements.to(kv_caches[0].device)

    def copy(self, source: Slots, target: Slots) -> None:
        """Copies slots `source` to slots `target`, `[num_tokens]` each; mutates the caches.

        All sources are read before any target is written; targets are all different.
        """
        read, write = self._index(source), self._index(target)
        for layer in self._layers:
            layer[write] = layer[read]

    def read_blocks(self, block_ids: Sequence[int]) -> torch.Tensor:
        """Returns whole blocks of all layers in host memory, `[num_layers, num_blocks, ...]`."""
        index = torch.tensor(block_ids, device=self._elements.device)
        return torch.stack([layer[index] for layer in self._layers]).cpu()

    def write_blocks(self, block_ids: Sequence[int], blocks: torch.Tensor) -> None:
        """Writes what `read_blocks` returned to other blocks; mutates the caches."""
        index = torch.tensor(block_ids, device=self._elements.device)
        for layer, data in zip(self._layers, blocks, strict=True):
            layer[index] = data.to(layer.device)

    def checksum(self, slots: Slots) -> int:
        """A number that changes when any bit of the KV in `slots` does (but for collisions)."""
        index, total = self._index(slots), 0
        for layer in self._layers:
            bits = layer[index].to(torch.int64).flatten()
            weights = torch.arange(1, 2 * len(bits), 2, device=bits.device)
            total = (total * 1_000_003 + int((bits * weights).sum())) % (1 << 64)
        return total

    def _index(self, slots: Slots) -> tuple[torch.Tensor, torch.Tensor]:
        """Block and element of each element of each slot, `[num_tokens, num_elements]`."""
        block_size = self._elements.shape[1]
        slot = torch.from_numpy(slots).to(self._elements.device)
        return (slot // block_size)[:, None], self._elements.T[slot % block_size]
