"""Finds positions in the order of a prompt, without gaps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vllm_promptcache.layout.content import SizedText
from vllm_promptcache.layout.module_layout import ModuleLayout
from vllm_promptcache.layout.shifts import Shifts


@dataclass(slots=True)
class CompactPlacer:
    """Walks the imports of a prompt and hands out positions from 0 on.

    Attributes:
        children: Imported modules by the module around them, in order of import.
        texts: Numbers and lengths of the groups of new text, by the module around them and the
            one of its children that they follow, None in front of all.
        places: How far each module is shifted, its text before its first child one way and the
            rest another, and where its extent ends; by index.
        starts: Where each group begins, by number.
        cursor: The next position.
    """

    children: Mapping[int | None, list[ModuleLayout]]
    texts: Mapping[tuple[int, int | None], list[tuple[int, int]]]
    places: dict[int, tuple[Shifts, int]] = field(default_factory=dict)
    starts: dict[int, int] = field(default_factory=dict)
    cursor: int = 0

    @classmethod
    def of(cls, modules: Iterable[ModuleLayout], texts: Iterable[SizedText]) -> CompactPlacer:
        """Sorts modules and texts by what is around them; arguments as for `Placement.place`."""
        children, by_place = defaultdict(list), defaultdict(list)
        by_index = {module.index: module for module in modules}
        for module in by_index.values():
            children[module.parent].append(module)
        for number, (text, num_tokens) in enumerate(texts):
            scope = text.scope.index
            child = _child(by_index, scope, text.after)
            by_place[scope, child].append((number, num_tokens))
        return cls(children, by_place)

    def module(self, module: ModuleLayout) -> None:
        """Places a module's text before its first child, the children, then the rest of it."""
        head = self.cursor - module.start
        self.cursor += module.head_end - module.start
        self._text(module.index, None)
        for child in self.children.get(module.index, ()):
            self.module(child)
            self._text(module.index, child.index)
        shifts = Shifts((0, module.head_end), (head, self.cursor - module.head_end))
        self.cursor += module.end - module.head_end
        self.places[module.index] = shifts, self.cursor

    def _text(self, scope: int, child: int | None) -> None:
        for number, num_tokens in self.texts.get((scope, child), ()):
            self.starts[number] = self.cursor
            self.cursor += num_tokens


def _child(
    modules: Mapping[int, ModuleLayout], scope: int, module: ModuleLayout | None
) -> int | None:
    """The module directly in `scope` that `module` is, or that it is nested in."""
    while module is not None and module.parent != scope:
        assert module.parent is not None, "an import is inside of the element around it"
        module = modules[module.parent]
    return None if module is None else module.index
