"""How far the positions of a schema are shifted in a prompt."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from vllm_promptcache.layout.module_layout import ModuleLayout
from vllm_promptcache.sequence.runs import Run


@dataclass(frozen=True, slots=True)
class Shifts:
    """How far positions of a schema are shifted in a prompt.

    Attributes:
        starts: Positions from which on another shift holds, ascending, the first one 0.
        shifts: How many positions what starts there is shifted by.
    """

    starts: tuple[int, ...]
    shifts: tuple[int, ...]

    @staticmethod
    def of(moves: Iterable[tuple[int, int]]) -> Shifts:
        """Makes shifts of moves, each `(start, distance)` of all that lies from `start` on."""
        starts, shifts = [0], [0]
        for start, distance in sorted(moves):
            starts.append(start)
            shifts.append(shifts[-1] + distance)
        return Shifts(tuple(starts), tuple(shifts))

    def at(self, position: int) -> int:
        """The shift of a position."""
        return self.shifts[bisect_right(self.starts, position) - 1]

    def around(self, module: ModuleLayout) -> Shifts:
        """The same as far as positions of a module are concerned, and the one before it."""
        first, end = max(0, module.start - 1), module.end
        low, high = bisect_right(self.starts, first), bisect_right(self.starts, end)
        return Shifts((0, *self.starts[low:high]), (self.at(first), *self.shifts[low:high]))

    def moved(self, run: Run) -> Iterator[Run]:
        """Where the positions of a run go."""
        for start, end in self._pieces(run):
            yield Run(start + self.at(start), end - start)

    def num_together(self, runs: Iterable[Run]) -> int:
        """How many of some positions, from the first one on, are shifted alike."""
        pieces = [piece for run in runs for piece in self._pieces(run)]
        num_positions = 0
        for start, end in pieces:
            if self.at(start) != self.at(pieces[0][0]):
                break
            num_positions += end - start
        return num_positions

    def _pieces(self, run: Run) -> Iterator[tuple[int, int]]:
        low, high = bisect_right(self.starts, run.start), bisect_left(self.starts, run.end)
        edges = [run.start, *self.starts[low:high], run.end]
        yield from pairwise(edges)
