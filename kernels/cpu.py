"""Slot copies on the CPU.

A gather goes through the cache element by element and token by token. The copy here goes along
what lies side by side in memory: with vLLM's usual layout the slots of a block for each element of
K, and the elements of a head for each slot of V.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import numpy.typing as npt
import torch

from vllm_promptcache.kernels.cpu_rotation import BlockRotator, can_rotate
from vllm_promptcache.kernels.reference import SlotCopier, Slots
from vllm_promptcache.kernels.rotation import Rotation


class CPUSlotCopier(SlotCopier):
    """Copies the KV of slots and blocks in all layers; same results as `SlotCopier`."""

    def __init__(self, kv_caches: list[torch.Tensor], slot_elements: torch.Tensor) -> None:
        super().__init__(kv_caches, slot_elements)
        self._blocks = tuple(layer.numpy() for layer in self._layers)
        self._elements_of = (_slot_rows(slot_elements), *_element_runs(slot_elements))
        self._rotator = _block_rotator(slot_elements, self._dtype)
        # Compiled here, not by the first request that needs a copy. Slot 0 is vLLM's null block.
        self.copy(np.zeros(1, np.int64), np.zeros(1, np.int64))
        if self._rotator is not None:
            nothing = torch.zeros(0, 1)
            self.rotate_blocks([], [], Rotation(nothing, nothing, is_neox=True), head_size=2)

    def copy(self, source: Slots, target: Slots) -> None:
        """See `SlotCopier.copy`."""
        block_size, reads = self._elements.shape[1], self._blocks
        block_ids, places = np.unique(source // block_size, return_inverse=True)
        if np.isin(target // block_size, block_ids).any():
            # What is read would be overwritten: read from copies of the blocks.
            reads = tuple(layer[block_ids] for layer in self._blocks)
            source = places * block_size + source % block_size
        segments = _segments(source, target, block_size)
        _copy_segments(reads, self._blocks, segments, block_size, *self._elements_of)

    def rotate_blocks(
        self, source: Sequence[int], target: Sequence[int], rotation: Rotation, *, head_size: int
    ) -> None:
        """See `SlotCopier.rotate_blocks`."""
        if self._rotator is None:
            super().rotate_blocks(source, target, rotation, head_size=head_size)
        else:
            self._rotator.rotate(self._blocks, source, target, rotation, head_size)


def _block_rotator(slot_elements: torch.Tensor, dtype: torch.dtype) -> BlockRotator | None:
    """The fast way to relocate blocks, None where the layout or the type allow none."""
    keys = slot_elements[: len(slot_elements) // 2]
    if not (can_rotate(dtype) and _is_slot_row(keys).all()):
        return None
    return BlockRotator(keys[:, 0].numpy(), keys.shape[1], dtype)


def _slot_rows(slot_elements: torch.Tensor) -> Slots:
    """Elements whose slots lie side by side: where those of slot 0 are, `[num_rows]`."""
    return slot_elements[_is_slot_row(slot_elements), 0].numpy()


def _element_runs(slot_elements: torch.Tensor) -> tuple[Slots, Slots, npt.NDArray[np.bool_]]:
    """The other elements, in runs that lie side by side for each slot.

    Returns:
        Where each run begins for each slot, `[num_runs, block_size]`, the runs' lengths, and
        whether each slot's run begins where that of the slot before ends.
    """
    elements = slot_elements[~_is_slot_row(slot_elements)].numpy()
    cuts = np.flatnonzero((np.diff(elements, axis=0) != 1).any(axis=1)) + 1
    starts = np.concatenate([[0], cuts])[: len(elements)].astype(np.int64)
    runs, lengths = elements[starts], np.diff(starts, append=len(elements))
    is_joined = (np.diff(runs, axis=1) == lengths[:, None]).all(axis=1)
    return np.ascontiguousarray(runs), lengths, is_joined


def _is_slot_row(slot_elements: torch.Tensor) -> torch.Tensor:
    return (slot_elements.diff(dim=1) == 1).all(dim=1)


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
def _copy_segments(reads, writes, segments, block_size, rows, runs, lengths, is_joined):  # type: ignore[no-untyped-def]
    for layer in range(len(writes)):
        for source, target, num_slots in segments:
            old, new = reads[layer][source // block_size], writes[layer][target // block_size]
            first, to = source % block_size, target % block_size
            for row in rows:
                _copy(old, row + first, new, row + to, num_slots)
            for run in range(len(runs)):
                # A copy of one slot is a copy of all where these follow each other in memory.
                num_copies, length = (1, num_slots) if is_joined[run] else (num_slots, 1)
                for slot in range(num_copies):
                    a, b = runs[run, first + slot], runs[run, to + slot]
                    _copy(old, a, new, b, length * lengths[run])


@numba.njit(nogil=True)
def _copy(old, source, new, target, length):  # type: ignore[no-untyped-def]
    # Slices are assigned element by element, which takes four times as long.
    x, y = old[source : source + length], new[target : target + length]
    rest = length // 8 * 8
    for i in range(0, rest, 8):
        y[i], y[i + 1], y[i + 2], y[i + 3] = x[i], x[i + 1], x[i + 2], x[i + 3]
        y[i + 4], y[i + 5], y[i + 6], y[i + 7] = x[i + 4], x[i + 5], x[i + 6], x[i + 7]
    for i in range(rest, length):
        y[i] = x[i]
