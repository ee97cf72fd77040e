"""Finds positions for new text (paper, section 3.4)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import attrgetter

from vllm_promptcache.errors import PMLError
from vllm_promptcache.layout.schema_layout import ROOT, ModuleLayout, SchemaLayout
from vllm_promptcache.plan.resolve import ResolvedPrompt, TextGroup
from vllm_promptcache.pml.ast import Prompt
from vllm_promptcache.pml.diagnostics import pml_error, quote

_start = attrgetter("start")


@dataclass(frozen=True, slots=True)
class _Taken:
    """Positions that are not free; `owner` is None for new text."""

    start: int
    end: int
    owner: ModuleLayout | None


def place_in_gaps(
    prompt: Prompt,
    layout: SchemaLayout,
    resolved: ResolvedPrompt,
    num_tokens: Callable[[TextGroup], int],
) -> list[int]:
    """Finds positions for the inner text of a prompt, see `TextPlacer.place`.

    Returns:
        Where each group of `resolved.inner` begins.

    Raises:
        PMLError: There is no room for one of them.
    """
    if not resolved.inner:
        return []
    placer = TextPlacer.of(prompt, layout, resolved.modules)
    return [placer.place(group, num_tokens(group)) for group in resolved.inner]


@dataclass(slots=True)
class TextPlacer:
    """Places new text between imports where the schema leaves positions free.

    Attributes:
        prompt: For error messages.
        layout: The prompt's schema.
        taken: Positions of imported modules' own tokens, parameters included, and of the text
            placed so far; ascending.
        text_ends: Where text inside of a module's import ends, by the module's index.
    """

    prompt: Prompt
    layout: SchemaLayout
    taken: list[_Taken]
    text_ends: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, prompt: Prompt, layout: SchemaLayout, modules: Iterable[ModuleLayout]
    ) -> TextPlacer:
        """Starts with the positions that the imported modules take."""
        taken = [
            _Taken(run.start, run.end, module) for module in modules for run in module.position_runs
        ]
        return cls(prompt, layout, sorted(taken, key=_start))

    def place(self, group: TextGroup, num_tokens: int) -> int:
        """Takes positions for a group of texts and returns the first of them.

        Text behind an import starts where the import ends (a union's member at its own end) or,
        if the text around it in the schema lies there, behind that. Text in front of all imports
        of its element starts behind whatever lies before the first of them; without any, behind
        the module's own text.

        Raises:
            PMLError: There are too few free positions up to the next import.
        """
        if group.after is not None:
            position = self._behind(group.after)
        else:
            limit = group.scope.end if group.before is None else group.before.start
            position = max(group.scope.start, self._last_end(limit))
        self._check(group, num_tokens, position)
        if num_tokens:
            insort(self.taken, _Taken(position, position + num_tokens, None), key=_start)
        for module in (*self.layout.ancestors(group.scope), group.scope):
            end = max(self.text_ends.get(module.index, 0), position + num_tokens)
            self.text_ends[module.index] = end
        return position

    def _behind(self, module: ModuleLayout) -> int:
        position = max(module.end, self.text_ends.get(module.index, 0))
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

    def _check(self, group: TextGroup, num_tokens: int, position: int) -> None:
        index = self._index(position)
        if index == len(self.taken):
            return
        following = self.taken[index]
        num_free = max(0, following.start - position)
        if num_tokens > num_free:
            raise self._too_long(group, num_tokens, num_free, following.owner)

    def _too_long(
        self, group: TextGroup, num_tokens: int, num_free: int, owner: ModuleLayout | None
    ) -> PMLError:
        message = (
            f"the text here has {num_tokens} tokens but only {num_free} positions are free before "
            f"{_describe(owner)}"
        )
        hint = (
            "move the text to the end, leave out modules behind it, or give the schema "
            '`layout="compact"`, in which modules make room'
        )
        return pml_error(self.prompt.source, group.pieces[0].location, message, hint)


def _describe(owner: ModuleLayout | None) -> str:
    if owner is None:
        return "other new text"
    return "the schema's own text" if owner.index == ROOT else quote(owner.path)
