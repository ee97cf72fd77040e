"""Modules that stand in a prompt, in no schema: known by their text alone.

Each is laid out as the only module of a compact schema, in a message of its role if it stands in
one. So what it is encoded behind is that role's wrapper and the made-up primer, never another text
of a client; and it is the same module in all prompts with the same text, wherever they have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count

from vllm_promptcache.layout.module_layout import ROOT, ModuleLayout
from vllm_promptcache.layout.relocation import relocate
from vllm_promptcache.layout.schema_layout import INLINE_INDEX, SchemaLayout
from vllm_promptcache.layout.shifts import Shifts
from vllm_promptcache.layout.size import moved_bytes
from vllm_promptcache.pml.ast import (
    Inline,
    Location,
    Module,
    Role,
    Schema,
    SchemaNode,
    Source,
    Text,
)
from vllm_promptcache.sequence.codec import INLINE

_START = Location(1, 1)
# No two modules have the same index, whatever prompts they meet in.
_indexes = count(INLINE_INDEX)


@dataclass(frozen=True, slots=True)
class InlineModule:
    """A module of a prompt, as its own schema has it.

    Attributes:
        module: The module.
        contexts: What it is encoded behind, and all that these are encoded behind.
        is_exact: Whether prompts with it are to equal a plain prefill.
    """

    module: ModuleLayout
    contexts: tuple[ModuleLayout, ...]
    is_exact: bool

    @property
    def num_tokens(self) -> int:
        """Its length."""
        return len(self.module.token_ids)

    @property
    def parts(self) -> Iterator[ModuleLayout]:
        """The module and its contexts."""
        yield self.module
        yield from self.contexts

    def behind(self, contexts: tuple[ModuleLayout, ...]) -> InlineModule:
        """The same module behind the same contexts as they are in another one."""
        indexes = {a.index: b.index for a, b in zip(self.contexts, contexts, strict=True)}
        return replace(self, module=_behind(self.module, indexes), contexts=contexts)

    def at(self, layout: SchemaLayout, position: int, path: str) -> ModuleLayout:
        """The module where a prompt has it; prompts want the same ones at the same places.

        Args:
            layout: The prompt's schema.
            position: Where its first token goes.
            path: What reports call it.
        """
        module, shift = self.module, position - self.module.start

        def make() -> ModuleLayout:
            moved = relocate(module, Shifts((0,), (shift,)), module.end + shift)
            return replace(moved, path=path)

        return layout.derived.get((module, position, path), make, moved_bytes)


def schema_of(inline: Inline, *, private: bool) -> Schema:
    """The schema that an inline module is the only module of."""
    text = Text(inline.text, _START)
    module = Module("module", (text,), inline.encode, True, inline.repair, None, _START)
    children: tuple[SchemaNode, ...] = (module,)
    return _schema(
        children if inline.role is None else (Role(inline.role, children, _START),), private
    )


def schema_without_modules(text: str, *, private: bool) -> Schema:
    """The schema of prompts that name none; `text` is what they begin with."""
    return _schema((Text(text, _START),) if text else (), private)


def _schema(children: tuple[SchemaNode, ...], private: bool) -> Schema:
    return Schema(
        name=INLINE,
        children=children,
        encode=None,
        repair=None,
        layout="compact",
        order="prompt",
        private=private,
        pin=None,
        scaffolds=(),
        source=Source(INLINE, ""),
        location=_START,
    )


def taken_out(layout: SchemaLayout) -> InlineModule:
    """The only module of a schema, for prompts of other ones.

    Args:
        layout: The schema of an inline module.
    """
    (module,) = layout.modules[1:]
    indexes = {index: next(_indexes) for index in (*module.dependencies, module.index)}
    contexts = (_renumbered(layout.at(index), indexes) for index in module.dependencies)
    return InlineModule(_renumbered(module, indexes), tuple(contexts), layout.is_exact)


def _renumbered(module: ModuleLayout, indexes: Mapping[int, int]) -> ModuleLayout:
    index = indexes[module.index]
    moved = _behind(module, indexes)
    return replace(moved, index=index, parent=ROOT, last_descendant=index, first=None)


def _behind(module: ModuleLayout, indexes: Mapping[int, int]) -> ModuleLayout:
    """A module whose contexts have other indexes."""
    return replace(
        module,
        context=tuple(replace(span, index=indexes[span.index]) for span in module.context),
        dependencies=tuple(indexes[index] for index in module.dependencies),
    )
