"""Places modules and text in the order of the prompt, without gaps: a compact schema."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vllm_promptcache.layout.relocation import Shifts, relocated
from vllm_promptcache.layout.schema_layout import ModuleLayout, SchemaLayout
from vllm_promptcache.plan.resolve import ResolvedPrompt, TextGroup


def place_compactly(
    layout: SchemaLayout, resolved: ResolvedPrompt, num_tokens: Callable[[TextGroup], int]
) -> tuple[ResolvedPrompt, list[int]]:
    """Gives the modules and the inner text of a prompt their positions.

    Args:
        layout: A compact schema.
        resolved: The prompt.
        num_tokens: Length of a group of new text.

    Returns:
        The prompt with its modules and parameters where they are now, and where each group of
        `resolved.inner` begins.
    """
    placer = _Placer.of(layout, resolved, num_tokens)
    placer.module(layout.root)
    modules = (relocated(layout, m, *placer.places[m.index]) for m in resolved.modules)
    placed = resolved.with_modules(modules)
    return placed, [placer.starts[number] for number in range(len(resolved.inner))]


@dataclass(slots=True)
class _Placer:
    """Walks the imports of a prompt and hands out positions from 0 on.

    Attributes:
        children: Imported modules by the module around them, in order of import.
        groups: Numbers and lengths of the groups of new text, by the module around them and the
            one of its children that they follow, None in front of all.
        places: How far each module is shifted, its text before its first child one way and the
            rest another, and where its extent ends; by index.
        starts: Where each group begins, by number.
        cursor: The next position.
    """

    children: Mapping[int | None, list[ModuleLayout]]
    groups: Mapping[tuple[int, int | None], list[tuple[int, int]]]
    places: dict[int, tuple[Shifts, int]] = field(default_factory=dict)
    starts: dict[int, int] = field(default_factory=dict)
    cursor: int = 0

    @classmethod
    def of(
        cls, layout: SchemaLayout, resolved: ResolvedPrompt, num_tokens: Callable[[TextGroup], int]
    ) -> _Placer:
        children, groups = defaultdict(list), defaultdict(list)
        for module in resolved.modules:
            children[module.parent].append(module)
        for number, group in enumerate(resolved.inner):
            scope = group.scope.index
            child = _child(layout, scope, group.after)
            groups[scope, child].append((number, num_tokens(group)))
        return cls(children, groups)

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
        for number, num_tokens in self.groups.get((scope, child), ()):
            self.starts[number] = self.cursor
            self.cursor += num_tokens


def _child(layout: SchemaLayout, scope: int, module: ModuleLayout | None) -> int | None:
    """The module directly in `scope` that `module` is, or that it is nested in."""
    while module is not None and module.parent != scope:
        assert module.parent is not None, "an import is inside of the element around it"
        module = layout.modules[module.parent]
    return None if module is None else module.index
