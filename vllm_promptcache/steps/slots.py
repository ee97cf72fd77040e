"""Slot arithmetic: token indexes to slots of the paged KV cache, without a loop over tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Slots = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SlotCopy:
    """A copy of KV between slots; all sources are read before any target is written.

    Attributes:
        source: Slots to read, `[num_tokens]`.
        target: Slots to write, `[num_tokens]`, all different.
    """

    source: Slots
    target: Slots

    @classmethod
    def concatenate(cls, copies: Sequence[SlotCopy]) -> SlotCopy | None:
        """Returns all `copies` as one, or None if there are none."""
        if not copies:
            return None
        return cls(
            np.concatenate([copy.source for copy in copies]),
            np.concatenate([copy.target for copy in copies]),
        )


def slots_of(block_ids: Sequence[int], indexes: Slots, block_size: int) -> Slots:
    """Slots of the tokens at `indexes` of a sequence that lies in `block_ids`."""
    blocks = np.asarray(block_ids, dtype=np.int64)
    return blocks[indexes // block_size] * block_size + indexes % block_size


def ranges(parts: Iterable[tuple[int, int]]) -> Slots:
    """The integers of one or more `(start, num_tokens)` ranges, in order."""
    return np.concatenate([np.arange(start, start + n, dtype=np.int64) for start, n in parts])
