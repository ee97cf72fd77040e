"""Which replicas hold which modules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.ranking.summary import short_key

# Those not sent or reported for longest are forgotten, which costs an encode where a request goes
# elsewhere.
MAX_NUM_MODULES = 65_536


class Holders:
    """The holders of each module, as one router believes.

    A module is known by its short key, see `summary`, a replica by its slot, a number.
    """

    def __init__(self) -> None:
        # Bit `slot` is set for each holder.
        self._masks: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        """Modules that are known."""
        return len(self._masks)

    def add(self, slot: int, short_keys: Iterable[int]) -> None:
        """Notes that a replica holds modules."""
        for key in short_keys:
            self._masks[key] = self._masks.get(key, 0) | 1 << slot
            self._masks.move_to_end(key)
        while len(self._masks) > MAX_NUM_MODULES:
            self._masks.popitem(last=False)

    def discard(self, slot: int, short_keys: Iterable[int]) -> None:
        """Notes that a replica does not hold modules, whether it was known to or not."""
        for key in short_keys:
            if left := self._masks.get(key, 0) & ~(1 << slot):
                self._masks[key] = left
            else:
                self._masks.pop(key, None)

    def clear(self, slot: int) -> None:
        """Notes that a replica holds nothing."""
        self.discard(slot, [key for key, mask in self._masks.items() if mask >> slot & 1])

    def num_held(self, tokens: Mapping[bytes, int], num_slots: int) -> NDArray[np.float32]:
        """How many tokens of these modules each replica holds.

        Args:
            tokens: Tokens of each module by its key.
            num_slots: A multiple of 8, above all slots.

        Returns:
            `[num_slots]`.
        """
        # Modules of a schema mostly have the same holders: few masks to unpack.
        by_mask: dict[int, int] = {}
        for key, num_tokens in tokens.items():
            if mask := self._masks.get(short_key(key)):
                by_mask[mask] = by_mask.get(mask, 0) + num_tokens
        packed = b"".join(mask.to_bytes(num_slots // 8, "little") for mask in by_mask)
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
        # As floats, which are exact up to 16 million tokens, BLAS multiplies them.
        counts = np.fromiter(by_mask.values(), np.float32, len(by_mask))
        return counts @ bits.reshape(len(by_mask), num_slots)
