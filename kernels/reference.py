"""Plain torch versions of the kernels: the ground truth, and the path of devices without one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from vllm_promptcache.kernels.block_rows import BlockRows
from vllm_promptcache.kernels.rotation import Rotation, rotate_keys
from vllm_promptcache.kernels.transfers import HostCopy, to_device

Slots = npt.NDArray[np.int64]

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32}


class SlotCopier:
    """Copies the KV of slots and blocks in all layers.

    Args:
        kv_caches: KV cache of each layer, `[num_blocks, ...]`; see `BlockRows.of_layers`.
        slot_elements: `[num_elements, block_size]`, from `probe_slot_elements`.

    Raises:
        ValueError: See `BlockRows.of_layers`.
    """

    _rotate_keys = staticmethod(rotate_keys)

    def __init__(self, kv_caches: list[torch.Tensor], slot_elements: torch.Tensor) -> None:
        # As integers: a copy must not care whether some bits are a NaN.
        bits = _BITS[kv_caches[0].element_size()]
        layers = BlockRows.of_layers(kv_caches, slot_elements.numel())
        self._layers = [layer.rows.view(bits) for layer in layers]
        self._dtype = kv_caches[0].dtype
        self._elements = slot_elements.to(kv_caches[0].device)

    def copy(self, source: Slots, target: Slots) -> None:
        """Copies slots `source` to slots `target`, `[num_tokens]` each; mutates the caches.

        All sources are read before any target is written; targets are all different.
        """
        read, write = self._index(source), self._index(target)
        for layer in self._layers:
            layer[write] = layer[read]

    def rotate_blocks(
        self, source: Sequence[int], target: Sequence[int], rotation: Rotation, *, head_size: int
    ) -> None:
        """Copies a module to other blocks and rotates the keys there; mutates the caches.

        Token i of the module is in slot i of its blocks, one block after the other. The last block
        may be partly used: what its other slots hold afterwards is undefined.

        Args:
            source: Block ids.
            target: As many others, none of which is in `source`; or the same ones.
            rotation: Of the module's tokens, on the device of the caches.
            head_size: Elements of one head of K.

        Raises:
            ValueError: The caches do not hold floats, but for example quantized keys.
        """
        if not self._dtype.is_floating_point:
            raise ValueError(f"keys of type {self._dtype} cannot be rotated")
        num_tokens = len(rotation.cos)
        read, write = (self._slots_of(block_ids, num_tokens) for block_ids in (source, target))
        self.copy(read, write)
        blocks, elements = self._index(write)
        index = blocks, elements[:, : elements.shape[1] // 2]
        for layer in self._layers:
            keys = layer[index].view(self._dtype).view(num_tokens, -1, head_size)
            layer[index] = self._rotate_keys(keys, rotation).view(layer.dtype).flatten(1)

    def read_blocks(self, block_ids: Sequence[int]) -> HostCopy:
        """Copies whole blocks of all layers to host memory, `[num_layers, num_blocks, ...]`."""
        index = self._on_device(block_ids)
        return HostCopy.of(torch.stack([layer[index] for layer in self._layers]))

    def fits(self, blocks: HostCopy, num_tokens: int) -> bool:
        """Whether `blocks` are such as `read_blocks` returns of a module of so many tokens."""
        num_blocks = -(-num_tokens // self._elements.shape[1])
        shape = (len(self._layers), num_blocks, self._layers[0].shape[1])
        return num_tokens > 0 and blocks.shape == shape and blocks.dtype == self._layers[0].dtype

    def write_blocks(self, block_ids: Sequence[int], blocks: HostCopy) -> None:
        """Writes what `read_blocks` returned to other blocks; mutates the caches."""
        index = self._on_device(block_ids)
        for layer, data in zip(self._layers, blocks.to(index.device), strict=True):
            layer[index] = data

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
        slot = self._on_device(slots)
        return (slot // block_size)[:, None], self._elements.T[slot % block_size]

    def _on_device(self, numbers: Sequence[int] | Slots) -> torch.Tensor:
        return to_device(np.asarray(numbers, np.int64), self._elements.device)

    def _slots_of(self, block_ids: Sequence[int], num_tokens: int) -> Slots:
        """The first slots of some blocks, `[num_tokens]`."""
        block_size = self._elements.shape[1]
        slots = np.array(block_ids, np.int64)[:, None] * block_size + np.arange(block_size)
        return slots.flatten()[:num_tokens]
