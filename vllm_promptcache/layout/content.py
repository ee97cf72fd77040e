"""Content as it is tokenised: text nodes and the wrappers of roles, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from vllm_promptcache.layout.module_layout import ModuleLayout
from vllm_promptcache.layout.piecewise import PlacedText
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.pml.ast import (
    Import,
    Inline,
    Module,
    Param,
    Place,
    PromptNode,
    Role,
    RoleName,
    SchemaNode,
    Text,
    Union,
)


@dataclass(frozen=True, slots=True)
class RoleEdge:
    """Where a role begins, before its wrapper's prefix, or ends, behind its suffix."""

    role: RoleName
    opens: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is tokenised on its own: a text node, or what stands around a role.

    Attributes:
        text: The text; a wrapper's may be empty.
        location: The text node, or the role's element.
        edge: Whether it begins or ends a role.
        inline: The module that it is the text of; None for text that is in none.
        before: What stands before it, as in `PlacedText`.
    """

    text: str
    location: Place
    edge: RoleEdge | None = None
    before: str | None = None
    inline: Inline | None = None

    @property
    def placed(self) -> PlacedText:
        """The text as it is tokenised."""
        return PlacedText(self.text, self.before)


@dataclass(frozen=True, slots=True)
class TextGroup:
    """New text of a prompt with no import in between.

    Attributes:
        scope: Module whose import holds the text; the root at the top of the prompt.
        after: The module imported before the text in the same element, if any.
        before: The module imported behind the text in the same element, if any.
        pieces: The text.
    """

    scope: ModuleLayout
    after: ModuleLayout | None
    before: ModuleLayout | None
    pieces: tuple[Piece, ...]


SizedText: TypeAlias = tuple[TextGroup, int]
"""New text and how many tokens it has."""

Item: TypeAlias = Piece | Param | Module | Union | Import


def items(
    children: Iterable[SchemaNode] | Iterable[PromptNode],
    tokenizer: LayoutTokenizer,
    before: str | None = None,
) -> Iterator[Item]:
    """Children in document order, with text as pieces and roles replaced by what they hold.

    Args:
        children: Nodes of a schema or a prompt, whose roles have been checked.
        tokenizer: Knows the model's chat roles; they are derived only where one occurs.
        before: Text right before the first child: empty at the start of a document, None if not
            known.
    """
    for item in _items(children, tokenizer):
        if not isinstance(item, Piece):
            before = None
        elif item.text:
            placed = tokenizer.placed(item.text, before)
            item, before = replace(item, before=placed.before), item.text
        yield item


def _items(
    children: Iterable[SchemaNode] | Iterable[PromptNode], tokenizer: LayoutTokenizer
) -> Iterator[Item]:
    for child in children:
        match child:
            case Text():
                yield Piece(child.text, child.location)
            case Inline(text=""):
                pass  # it was white space, which the template drops
            case Inline():
                yield Piece(child.text, child.location, inline=child)
            case Role():
                yield from _wrapped(child, tokenizer)
            case _:
                yield child


def texts_in(
    children: Iterable[SchemaNode], tokenizer: LayoutTokenizer, before: str | None = None
) -> Iterator[PlacedText]:
    """All texts of a schema that are tokenised; `before` as for `items`."""
    for item in items(children, tokenizer, before):
        match item:
            case Piece():
                yield item.placed
            case Param(placeholder=str(text)):
                yield PlacedText(text)
            case Module():
                yield from texts_in(item.children, tokenizer)
            case Union():
                yield from texts_in(item.members, tokenizer)


def first_text(
    children: Iterable[SchemaNode], tokenizer: LayoutTokenizer, before: str
) -> PlacedText | None:
    """The text that a schema begins with, None if it begins with a module or a union."""
    for item in items(children, tokenizer, before):
        if not isinstance(item, Piece):
            return None
        # The prefix of a role may be empty.
        if item.text:
            return item.placed
    return None


def roles_in(children: Iterable[SchemaNode] | Iterable[PromptNode]) -> Iterator[Role[Any]]:
    """Role elements at any depth, in document order."""
    for child in children:
        match child:
            case Role():
                yield child
                yield from roles_in(child.children)
            case Module() | Import():
                yield from roles_in(child.children)
            case Union():
                yield from roles_in(child.members)


def has_imports(node: PromptNode) -> bool:
    """Whether a node of a prompt is or holds an import."""
    if isinstance(node, Role):
        return any(map(has_imports, node.children))
    return isinstance(node, Import)


def _wrapped(role: Role[Any], tokenizer: LayoutTokenizer) -> Iterator[Item]:
    wrapper = tokenizer.roles.wrappers[role.role]
    if role.opens:
        yield Piece(wrapper.prefix, role.location, RoleEdge(role.role, opens=True))
    yield from _items(_stripped(role) if wrapper.strips_content else role.children, tokenizer)
    if role.closes:
        yield Piece(wrapper.suffix, role.location, RoleEdge(role.role, opens=False))


def _stripped(role: Role[Any]) -> list[Any]:
    """The role's children without white space at the ends of its own text."""
    children = list(role.children)
    if role.opens and children and isinstance(children[0], Text | Inline):
        children[0] = replace(children[0], text=children[0].text.lstrip())
    if role.closes and children and isinstance(children[-1], Text | Inline):
        children[-1] = replace(children[-1], text=children[-1].text.rstrip())
    return children
