"""Finds positions for new text (paper, section 3.4)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from vllm_promptcache.layout.content import TextGroup
from vllm_promptcache.layout.module_layout import ModuleLayout, ancestors
from vllm_promptcache.layout.moves import Moves

_start = attrgetter("start")


class _ModuleRun(NamedTuple):
    """Positions of a schema that an imported module takes."""

    start: int
    end: int
    owner: int


@dataclass(slots=True)
class _Text:
    """New text that has been placed.

    Attributes:
        slot: How many module runs lie before it, which never changes.
        start: Its first position, less what has moved its slot.
        num_tokens: Positions that it takes. Text of none moves along with what lies before it.
    """

    slot: int
    start: int
    num_tokens: int


@dataclass(slots=True)
class TextPlacer:
    """Places new text between imports where the schema leaves positions free, or makes room.

    Text lies in the slots between two module runs. Whatever moves is moved with all behind it, so
    that runs and text keep their order: how far a run or a slot has moved is a sum of the moves
    before it, see `Moves`.

    Attributes:
        modules: The imported modules by index.
        runs: Positions of imported modules' own tokens, parameters included; ascending.
        moves: What was moved to make room, by run.
        slots: The text placed so far by slot, in the order of its positions.
        texts: The same in the order in which it was placed.
        text_ends: The text that ends last inside of a module's import, and how many positions
            behind its start, by the module's index.
    """

    modules: Mapping[int, ModuleLayout]
    runs: list[_ModuleRun]
    moves: Moves
    slots: dict[int, list[_Text]] = field(default_factory=dict)
    texts: list[_Text] = field(default_factory=list)
    text_ends: dict[int, tuple[_Text, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, modules: Iterable[ModuleLayout]) -> TextPlacer:
        """Starts with the positions that the imported modules take."""
        by_index = {module.index: module for module in modules}
        runs = [
            _ModuleRun(run.start, run.end, module.index)
            for module in by_index.values()
            for run in module.position_runs
        ]
        runs.sort()
        return cls(by_index, runs, Moves([run.start for run in runs]))

    @property
    def starts(self) -> list[int]:
        """Where each group placed so far begins."""
        return [self._now(text) for text in self.texts]

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
            position = max(self.moves.now(group.scope.start), self._last_end(group))
        self._make_room(position, num_tokens)
        text = self._add(position, num_tokens)
        self.texts.append(text)
        # Where no token is, the one before counts: the end moves along with that.
        last = (text, num_tokens) if num_tokens else (self._add(position - 1, 0), 1)
        for module in (*ancestors(group.scope, self.modules), group.scope):
            if position + num_tokens > self._text_end(module):
                self.text_ends[module.index] = last

    def end_of(self, module: ModuleLayout) -> int:
        """One past the last position of a module's extent, as it is now."""
        return max(self.moves.now(module.start), self.moves.now(module.end - 1) + 1)

    def _text_end(self, module: ModuleLayout) -> int:
        if (found := self.text_ends.get(module.index)) is None:
            return 0
        text, num_behind = found
        return self._now(text) + num_behind

    def _now(self, text: _Text) -> int:
        return text.start + self.moves.before(text.slot)

    def _behind(self, module: ModuleLayout) -> int:
        position = max(self.end_of(module), self._text_end(module))
        around = {outer.index for outer in ancestors(module, self.modules)}
        slot = self.moves.num_until(position)
        if slot and self.runs[slot - 1].owner in around:
            position = max(position, self._run_end(slot - 1))
        while True:
            position = self._behind_texts(slot, position)
            if slot == len(self.runs):
                return position
            run = self.runs[slot]
            if self.moves.now(run.start) > position or run.owner not in around:
                return position
            position = max(position, self._run_end(slot))
            slot += 1

    def _behind_texts(self, slot: int, position: int) -> int:
        """The first free position from `position` on, as far as the text of a slot takes some."""
        moved = self.moves.before(slot)
        for text in self.slots.get(slot, ()):
            if text.start + moved > position:
                break
            position = max(position, text.start + moved + text.num_tokens)
        return position

    def _run_end(self, index: int) -> int:
        run = self.runs[index]
        return self.moves.now(run.start) + run.end - run.start

    def _last_end(self, group: TextGroup) -> int:
        """Where that ends which lies last before the import behind a group, else in its scope."""
        if (before := group.before) is not None:
            limit, now = before.start, self.moves.now(before.start)
        else:
            limit, now = group.scope.end, self.end_of(group.scope)
        slot = bisect_left(self.runs, (limit,))
        moved = self.moves.before(slot)
        for text in reversed(self.slots.get(slot, ())):
            if text.num_tokens and text.start + moved < now:
                return text.start + moved + text.num_tokens
        return self._run_end(slot - 1) if slot else 0

    def _make_room(self, position: int, num_tokens: int) -> None:
        """Moves what begins at `position` or less than `num_tokens` behind it."""
        slot = self.moves.num_until(position - 1)
        texts, moved = self.slots.get(slot, []), self.moves.before(slot)
        first = bisect_left(texts, position - moved, key=_start)
        behind = [at for at in range(first, len(texts)) if texts[at].num_tokens][:1]
        if behind:
            start = texts[behind[0]].start + moved
        elif slot < len(self.runs):
            start = self.moves.now(self.runs[slot].start)
        else:
            return
        if (distance := num_tokens - (start - position)) <= 0:
            return
        for text in texts[behind[0] :] if behind else ():
            text.start += distance
        if slot < len(self.runs):
            self.moves.add(slot, distance)

    def _add(self, position: int, num_tokens: int) -> _Text:
        slot = self.moves.num_until(position)
        text = _Text(slot, position - self.moves.before(slot), num_tokens)
        texts = self.slots.setdefault(slot, [])
        # Text without tokens comes behind what starts where it is.
        place = bisect_left if num_tokens else bisect_right
        texts.insert(place(texts, text.start, key=_start), text)
        return text
