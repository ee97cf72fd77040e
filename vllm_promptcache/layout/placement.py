"""Where modules and text lie, by a schema's `layout` and `order` (docs/how-it-works.md: Layouts).

A schema's placement is chosen when it is compiled. It gives the modules their positions; its layout
holds it, and it places what prompts import and write.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import attrgetter

from vllm_promptcache.layout.compact_placer import CompactPlacer
from vllm_promptcache.layout.content import SizedText
from vllm_promptcache.layout.drafts import ModuleDraft
from vllm_promptcache.layout.module_layout import ModuleLayout
from vllm_promptcache.layout.shifts import Shifts
from vllm_promptcache.layout.text_placer import TextPlacer
from vllm_promptcache.pml.ast import Import, PromptNode, Schema


@dataclass(frozen=True, slots=True)
class Places:
    """Where a prompt's modules and the text between them go.

    Attributes:
        modules: How far the positions of each module are shifted, and where its extent ends, by
            index; empty if all modules are where the schema puts them.
        starts: First position of each group of text.
    """

    modules: Mapping[int, tuple[Shifts, int]]
    starts: list[int]


class Placement(ABC):
    """Places the modules of a schema, then those of a prompt and its text."""

    has_leads = False
    """Whether there are positions for a primer before each primed module."""

    @abstractmethod
    def behind(self, start: int, end: int) -> int:
        """Where a module goes on behind modules nested in it that lie from `start` to `end`."""

    @abstractmethod
    def num_reusable(self, draft: ModuleDraft) -> int:
        """Kept tokens of a module, from the first one on, that no prompt's modules pull apart."""

    @abstractmethod
    def room_for_primer(self, around: ModuleDraft, inner: ModuleDraft) -> int:
        """Positions behind a module's head that its own text leaves before one nested in it."""

    @abstractmethod
    def lead(self, module: ModuleLayout, around: ModuleLayout) -> int:
        """Positions between a module and the head of the one around it that no prompt has."""

    @abstractmethod
    def known_ahead(self, scaffolds: Sequence[Collection[int]]) -> Sequence[Collection[int]]:
        """Those of a schema's scaffolds whose positions are known before any prompt is."""

    def in_order(
        self, children: Sequence[PromptNode], index_of: Callable[[Import], int]
    ) -> Sequence[PromptNode]:
        """The children of a prompt in the order in which they are placed.

        Args:
            children: The children.
            index_of: Looks up which module of the schema an import names.
        """
        return children

    def left(self, path: Iterable[ModuleLayout], last: ModuleLayout) -> ModuleLayout | None:
        """A module that imports have left, so that it can take in no other any more.

        Args:
            path: Those modules around an import that earlier ones have imported.
            last: The module that the import before it names.
        """
        return None

    @abstractmethod
    def place(self, modules: Sequence[ModuleLayout], texts: Sequence[SizedText]) -> Places:
        """Finds positions for the modules and the inner text of a prompt.

        Args:
            modules: All modules that it imports, the root first, each one behind those around it.
            texts: New text before its last import, in document order.
        """


class FixedPlacement(Placement):
    """Each module has positions of its own in the schema (paper, section 3.3).

    Text takes positions that are free between them, or moves what is behind it.
    """

    def behind(self, start: int, end: int) -> int:
        return end

    def num_reusable(self, draft: ModuleDraft) -> int:
        return len(draft.kept_ids)

    def room_for_primer(self, around: ModuleDraft, inner: ModuleDraft) -> int:
        first = bisect_left(around.runs, around.head, key=attrgetter("start"))
        texts = (around.runs[i] for i in range(first, len(around.runs)))
        text = next((run.start for run in texts if run.num_tokens), inner.start)
        return min(inner.start, text) - around.head

    def lead(self, module: ModuleLayout, around: ModuleLayout) -> int:
        return 0

    def known_ahead(self, scaffolds: Sequence[Collection[int]]) -> Sequence[Collection[int]]:
        return scaffolds

    def place(self, modules: Sequence[ModuleLayout], texts: Sequence[SizedText]) -> Places:
        if not texts:
            return Places({}, [])
        placer = TextPlacer.of(modules)
        for text, num_tokens in texts:
            placer.place(text, num_tokens)
        places = {}
        if placer.moves:
            shifts = Shifts.of(placer.moves)
            places = {m.index: (shifts.around(m), placer.end_of(m)) for m in modules}
        return Places(places, placer.starts)


class CompactPlacement(Placement):
    """Modules and text lie one behind the other in the order of the prompt, without gaps.

    In the schema, modules nested in one all start where the first of them does, and take no
    positions of it.
    """

    # Elsewhere a primer takes positions of the modules before.
    has_leads = True

    def behind(self, start: int, end: int) -> int:
        return start

    def num_reusable(self, draft: ModuleDraft) -> int:
        return draft.num_kept_before(draft.head)

    def room_for_primer(self, around: ModuleDraft, inner: ModuleDraft) -> int:
        # Own text behind the head may be anywhere, so it is not before that.
        return inner.start - around.head

    def lead(self, module: ModuleLayout, around: ModuleLayout) -> int:
        return module.start - around.head_end

    def known_ahead(self, scaffolds: Sequence[Collection[int]]) -> Sequence[Collection[int]]:
        return ()

    def left(self, path: Iterable[ModuleLayout], last: ModuleLayout) -> ModuleLayout | None:
        return next((m for m in path if not m.index <= last.index <= m.last_descendant), None)

    def place(self, modules: Sequence[ModuleLayout], texts: Sequence[SizedText]) -> Places:
        placer = CompactPlacer.of(modules, texts)
        placer.module(modules[0])
        return Places(placer.places, [placer.starts[number] for number in range(len(texts))])


class FreePlacement(CompactPlacement):
    """Compact, and imports that commute are put into the order in which the schema has them.

    Exact modules are shared by prompts that begin alike. Where the author of a schema says that its
    modules may come in any order, prompts with the same modules begin alike, whichever server plans
    them.
    """

    def in_order(
        self, children: Sequence[PromptNode], index_of: Callable[[Import], int]
    ) -> Sequence[PromptNode]:
        """Sorts the imports before any text or role.

        Those that bring new tokens come behind the others, since what is behind new tokens is
        shared with fewer prompts.
        """
        nodes = takewhile(lambda node: isinstance(node, Import), children)
        first = [node for node in nodes if isinstance(node, Import)]
        first.sort(key=lambda node: (_is_new(node), index_of(node)))
        return [*first, *children[len(first) :]]

    def left(self, path: Iterable[ModuleLayout], last: ModuleLayout) -> ModuleLayout | None:
        return None


def placement_of(schema: Schema) -> Placement:
    """The placement that a schema asks for."""
    if schema.layout == "schema":
        return FixedPlacement()
    return FreePlacement() if schema.order == "any" else CompactPlacement()


def _is_new(node: PromptNode) -> bool:
    """Whether a node brings tokens that are computed."""
    if not isinstance(node, Import):
        return True
    return bool(node.arguments) or any(map(_is_new, node.children))
