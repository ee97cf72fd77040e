"""Sums of moves: each moves one place and all behind it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence


class Moves:
    """How far ascending places have moved; every answer takes the logarithm of their number.

    A Fenwick tree over the places.

    Args:
        starts: The places before anything has moved, ascending.
    """

    def __init__(self, starts: Sequence[int]) -> None:
        self._starts = starts
        self._distances = [0] * len(starts)
        # Node i holds the sum of the `i & -i` distances before place i.
        self._sums = [0] * (len(starts) + 1)

    def __bool__(self) -> bool:
        return any(self._distances)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Each place that was moved, where it was first, with how far it and what is behind was."""
        return ((s, d) for s, d in zip(self._starts, self._distances, strict=True) if d)

    def add(self, index: int, distance: int) -> None:
        """Moves a place and all behind it; `distance` is positive."""
        self._distances[index] += distance
        index += 1
        while index < len(self._sums):
            self._sums[index] += distance
            index += index & -index

    def before(self, index: int) -> int:
        """How far that has moved which lies between a place and the one before it."""
        distance = 0
        while index:
            distance += self._sums[index]
            index &= index - 1
        return distance

    def now(self, position: int) -> int:
        """Where that is now which was at a position, a place's or another one, at first."""
        return position + self.before(bisect_right(self._starts, position))

    def num_until(self, position: int) -> int:
        """How many places lie at or before a position now."""
        num, distance = 0, 0
        step = 1 << len(self._starts).bit_length()
        while step := step >> 1:
            index = num + step
            if index < len(self._sums):
                further = distance + self._sums[index]
                if self._starts[index - 1] + further <= position:
                    num, distance = index, further
        return num
