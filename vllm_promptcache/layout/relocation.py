"""Modules at other places than their schema's (docs/how-it-works.md: Layouts)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import pairwise

from vllm_promptcache.layout.schema_layout import ModuleLayout, RoleMark, SchemaLayout
from vllm_promptcache.layout.size import moved_bytes
from vllm_promptcache.sequence.runs import Run, merge_runs
from vllm_promptcache.sequence.spans import Relocation


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


def relocated(layout: SchemaLayout, module: ModuleLayout, shifts: Shifts, end: int) -> ModuleLayout:
    """Returns a module where a prompt puts it; prompts want the same ones at the same places.

    Args and rules as for `relocate`.
    """
    key = (module, shifts, end)
    return layout.derived.get(key, lambda: relocate(module, shifts, end), moved_bytes)


def relocate(module: ModuleLayout, shifts: Shifts, end: int) -> ModuleLayout:
    """Returns a module where a prompt puts it.

    What is shifted as far as its first token can be had by rotating the KV of the module at its own
    place, so its key follows from that one's and the shift: a relocated module is never taken for
    one that was encoded at its place, from which it differs by rounding, and by where the context
    lay that it was encoded behind.

    Args:
        module: A module of a schema.
        shifts: Where the prompt puts the positions of the schema.
        end: One past the last position of its extent there.
    """
    kept = module.kept_position_runs
    shift = shifts.at(kept[0].start) if kept else 0
    key = relocated_key(module.key, shift)
    return replace(
        module,
        start=module.start + shifts.at(module.start),
        end=end,
        num_reusable=min(module.num_reusable, shifts.num_together(kept)),
        parameters={
            name: replace(slot, start=slot.start + shifts.at(slot.start))
            for name, slot in module.parameters.items()
        },
        position_runs=merge_runs(p for run in module.position_runs for p in shifts.moved(run)),
        kept_position_runs=merge_runs(p for run in kept for p in shifts.moved(run)),
        role_marks=tuple(_moved(mark, shifts) for mark in module.role_marks),
        key=key,
        relocation=Relocation(key, module.key, shift) if shift else None,
    )


def _moved(mark: RoleMark, shifts: Shifts) -> RoleMark:
    # What closes at the end of a piece closes before what is behind that.
    at = mark.position if mark.opens else mark.position - 1
    return replace(mark, position=mark.position + shifts.at(at))


def relocated_key(key: bytes, shift: int) -> bytes:
    """Key of the module `key` when it is shifted by that many positions."""
    if shift == 0:
        return key
    return sha256(b"relocated" + key + shift.to_bytes(8, "big", signed=True)).digest()
