"""Positions for new text by moving all that lies behind it, text by text: the rule, slowly."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from operator import attrgetter

from vllm_promptcache.layout import ModuleLayout, SchemaLayout
from vllm_promptcache.layout.content import TextGroup
from vllm_promptcache.layout.relocation import relocated
from vllm_promptcache.layout.shifts import Shifts
from vllm_promptcache.plan.resolved import ResolvedPrompt

_start = attrgetter("start")


def place_in_gaps(
    layout: SchemaLayout, resolved: ResolvedPrompt, num_tokens: Callable[[TextGroup], int]
) -> tuple[ResolvedPrompt, list[int]]:
    """Finds positions for the inner text of a prompt, see `TextPlacer.place`.

    Returns:
        The prompt with its modules where they are now, and where each group of `resolved.inner`
        begins.
    """
    if not resolved.inner:
        return resolved, []
    placer = TextPlacer.of(layout, resolved.modules)
    for group in resolved.inner:
        placer.place(group, num_tokens(group))
    if placer.moves:
        shifts = Shifts.of(placer.moves)
        modules = (relocated(layout, m, shifts, placer.end_of(m)) for m in resolved.modules)
        resolved = resolved.with_modules(modules)
    return resolved, placer.starts


@dataclass(frozen=True, slots=True)
class _Taken:
    """Positions that are not free.

    Attributes:
        start: The first one.
        end: One past the last one.
        owner: The module whose they are; None for new text.
        origin: Where the schema has them; None for new text.
    """

    start: int
    end: int
    owner: ModuleLayout | None = None
    origin: int | None = None

    def shifted(self, distance: int) -> _Taken:
        return replace(self, start=self.start + distance, end=self.end + distance)


@dataclass(slots=True)
class TextPlacer:
    """Places new text between imports where the schema leaves positions free, or makes room.

    Attributes:
        layout: The prompt's schema.
        taken: Positions of imported modules' own tokens, parameters included, and of the text
            placed so far; ascending.
        text_ends: Where text inside of a module's import ends, by the module's index.
        starts: Where each group placed so far begins.
        moves: What was moved to make room: `(start, distance)` of all that the schema has from
            `start` on.
    """

    layout: SchemaLayout
    taken: list[_Taken]
    text_ends: dict[int, int] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)
    moves: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def of(cls, layout: SchemaLayout, modules: Iterable[ModuleLayout]) -> TextPlacer:
        """Starts with the positions that the imported modules take."""
        taken = [
            _Taken(run.start, run.end, module, run.start)
            for module in modules
            for run in module.position_runs
        ]
        return cls(layout, sorted(taken, key=_start))

    def place(self, group: TextGroup, num_tokens: int) -> None:
        """Takes positions for a group of texts.

        Text behind an import starts where the import ends (a union's member at its own end) or,
        if the text around it in the schema lies there, behind that. Text in front of all imports
        of its element starts behind whatever lies before the first of them; without any, behind
        the module's own text. Where too few positions are free up to what follows, that moves, and
        all behind it.
        """
        if group.after is not None:
            position = self._behind(group.after)
        else:
            before = group.before
            limit = self.end_of(group.scope) if before is None else self._now(before.start)
            position = max(self._now(group.scope.start), self._last_end(limit))
        self._make_room(position, num_tokens)
        self.starts.append(position)
        if num_tokens:
            insort(self.taken, _Taken(position, position + num_tokens), key=_start)
        for module in (*self.layout.ancestors(group.scope), group.scope):
            end = max(self.text_ends.get(module.index, 0), position + num_tokens)
            self.text_ends[module.index] = end

    def end_of(self, module: ModuleLayout) -> int:
        """One past the last position of a module's extent, as it is now."""
        return max(self._now(module.start), self._now(module.end - 1) + 1)

    def _behind(self, module: ModuleLayout) -> int:
        position = max(self.end_of(module), self.text_ends.get(module.index, 0))
        around = {ancestor.index for ancestor in self.layout.ancestors(module)}
        for taken in self.taken[self._index(position) :]:
            is_around = taken.owner is None or taken.owner.index in around
            if taken.start > position or not is_around:
                break
            position = max(position, taken.end)
        return position

    def _last_end(self, limit: int) -> int:
        index = bisect_left(self.taken, limit, key=_start)
        return self.taken[index - 1].end if index else 0

    def _index(self, position: int) -> int:
        """Index of the entry that holds `position`, else of the next one behind it."""
        index = bisect_right(self.taken, position, key=_start)
        return index - 1 if index and self.taken[index - 1].end > position else index

    def _now(self, position: int) -> int:
        """Where a position of the schema is now."""
        return position + sum(distance for start, distance in self.moves if start <= position)

    def _make_room(self, position: int, num_tokens: int) -> None:
        """Moves what begins at `position` or less than `num_tokens` behind it."""
        index = self._index(position)
        if index == len(self.taken):
            return
        start = self.taken[index].start
        assert start >= position, "text never starts within a run of tokens"
        distance = num_tokens - (start - position)
        if distance <= 0:
            return
        origins = (t.origin for t in self.taken[index:] if t.origin is not None)
        if (origin := next(origins, None)) is not None:
            self.moves.append((origin, distance))
        self.taken[index:] = [taken.shifted(distance) for taken in self.taken[index:]]
        self.starts = [s + distance if s >= start else s for s in self.starts]
        ends = self.text_ends.items()
        self.text_ends = {m: end + distance if end > start else end for m, end in ends}
