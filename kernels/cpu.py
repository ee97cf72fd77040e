"""Slot copies on the CPU.

A gather goes through the cache token by token; with K transposed inside a block, each element of a
token lies on a cache line of its own. The copy here goes through a block row by row, so that slots
which share a line are copied together.
"""

from __future__ import annotations

import numba
import numpy as np
import torch

from vllm_promptcache.kernels.reference import SlotCopier, Slots


class CPUSlotCopier(SlotCopier):
    """Copies the KV of slots in all layers; same results as `SlotCopier`."""

    def __init__(self, kv_caches: list[torch.Tensor], slot_elements: torch.Tensor) -> None:
        super().__init__(kv_caches, slot_elements)
        self._arrays = [layer.numpy() for layer in self._layers]
        self._rows = slot_elements.to(torch.int32).numpy()
        # Compiled here, not by the first request that needs a copy. Slot 0 is vLLM's null block.
        self.copy(np.zeros(1, np.int64), np.zeros(1, np.int64))

    def copy(self, source: Slots, target: Slots) -> None:
        """See `SlotCopier.copy`."""
        num_elements, block_size = self._rows.shape
        segments = _segments(source, target, block_size)
        buffer = np.empty(len(source) * num_elements, self._arrays[0].dtype)
        for blocks in self._arrays:
            _copy_segments(blocks, buffer, segments, self._rows)


def _segments(source: Slots, target: Slots, block_size: int) -> Slots:
    """Cuts a copy wherever source or target leave a run of slots or a block.

    Returns:
        `[num_segments, 3]`: first source slot, first target slot, number of slots.
    """
    cuts = (np.diff(source) != 1) | (np.diff(target) != 1)
    cuts |= (source[1:] % block_size == 0) | (target[1:] % block_size == 0)
    starts = np.concatenate([[0], np.flatnonzero(cuts) + 1])
    lengths = np.diff(starts, append=len(source))
    return np.stack([source[starts], target[starts], lengths], axis=1)


@numba.njit(nogil=True)
def _copy_segments(blocks, buffer, segments, rows):  # type: ignore[no-untyped-def]
    num_elements, block_size = rows.shape
    at = 0
    for source, _, num_slots in segments:
        block, first = blocks[source // block_size], source % block_size
        for element in range(num_elements):
            for slot in range(first, first + num_slots):
                buffer[at] = block[rows[element, slot]]
                at += 1
    at = 0
    for _, target, num_slots in segments:
        block, first = blocks[target // block_size], target % block_size
        for element in range(num_elements):
            for slot in range(first, first + num_slots):
                block[rows[element, slot]] = buffer[at]
                at += 1
