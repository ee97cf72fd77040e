"""Relocation of blocks on the CPU.

Needs a layout in which the slots of a block lie side by side for each element of K, as vLLM's usual
one does: then a pair of elements is turned for all slots of a block at once. numba does not know
bfloat16, so that keys come as bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

from vllm_promptcache.kernels.rotation import Rotation


@numba.njit
def _read_float32(bits):  # type: ignore[no-untyped-def]
    return np.int32(bits).view(np.float32)


@numba.njit
def _write_float32(value):  # type: ignore[no-untyped-def]
    return np.float32(value).view(np.int32)


@numba.njit
def _read_bfloat16(bits):  # type: ignore[no-untyped-def]
    return np.int32(np.int32(bits) << 16).view(np.float32)


@numba.njit
def _write_bfloat16(value):  # type: ignore[no-untyped-def]
    # To the nearest, ties to even.
    bits = np.float32(value).view(np.int32)
    return np.int16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


_READ_WRITE: dict[torch.dtype, tuple[Callable[..., Any], Callable[..., Any]]] = {
    torch.float32: (_read_float32, _write_float32),
    torch.bfloat16: (_read_bfloat16, _write_bfloat16),
}


def can_rotate(dtype: torch.dtype) -> bool:
    """Whether keys of this type can be rotated here."""
    return dtype in _READ_WRITE


@dataclass(frozen=True, slots=True)
class BlockRotator:
    """Copies blocks and rotates the keys of the copies.

    Attributes:
        rows: Where the slots of each element of K begin in a block, `[num_kv_heads * head_size]`.
        block_size: Slots a block.
        dtype: Of the keys; one that `can_rotate`.
    """

    rows: npt.NDArray[np.int64]
    block_size: int
    dtype: torch.dtype

    def rotate(
        self,
        layers: Sequence[npt.NDArray[Any]],
        source: Sequence[int],
        target: Sequence[int],
        rotation: Rotation,
        head_size: int,
    ) -> None:
        """Mutates `layers`, the bits of blocks; see `SlotCopier.rotate_blocks` for the others."""
        blocks = np.array([source, target], np.int64)
        heads, (first, second) = self.rows.reshape(-1, head_size), rotation.pairs()
        pairs = np.ascontiguousarray(np.stack([heads[:, first], heads[:, second]], axis=-1))
        cos, sin = (np.ascontiguousarray(x.numpy().T) for x in (rotation.cos, rotation.sin))
        for layer in layers:
            _rotate(layer, blocks, pairs, cos, sin, self.block_size, *_READ_WRITE[self.dtype])


@numba.njit(nogil=True)
def _rotate(layer, blocks, pairs, cos, sin, block_size, read, write):  # type: ignore[no-untyped-def]
    for index in range(blocks.shape[1]):
        block = layer[blocks[1, index]]
        block[:] = layer[blocks[0, index]]
        begin = index * block_size
        end = min(begin + block_size, cos.shape[1])
        num_slots = end - begin
        for head in range(pairs.shape[0]):
            for pair in range(pairs.shape[1]):
                a, b = pairs[head, pair]
                first, second = block[a : a + num_slots], block[b : b + num_slots]
                c, s = cos[pair, begin:end], sin[pair, begin:end]
                for slot in range(num_slots):
                    x, y = read(first[slot]), read(second[slot])
                    first[slot] = write(x * c[slot] - y * s[slot])
                    second[slot] = write(y * c[slot] + x * s[slot])
