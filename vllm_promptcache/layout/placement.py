"""Gives every piece of a schema its positions (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from vllm_promptcache.layout.content import Piece, items
from vllm_promptcache.layout.drafts import ModuleDraft
from vllm_promptcache.layout.schema_layout import ParameterSlot, RoleEnd, UnionLayout
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.pml.ast import (
    EncodePolicy,
    Module,
    Param,
    Pin,
    Repair,
    SchemaNode,
    Union,
)


def texts_in(children: Iterable[SchemaNode], tokenizer: LayoutTokenizer) -> Iterator[str]:
    """All texts of a schema that are tokenised."""
    for item in items(children, tokenizer):
        match item:
            case Piece(text=text) | Param(placeholder=str(text)):
                yield text
            case Module():
                yield from texts_in(item.children, tokenizer)
            case Union():
                yield from texts_in(item.members, tokenizer)


@dataclass(slots=True)
class Placement:
    """Walks a schema in document order and hands out positions from 0 on.

    Attributes:
        tokenizer: Knows the chat roles and the placeholder token.
        token_ids: Tokens of the preamble and of every text in `texts_in`.
        default_encode: Policy of modules that do not say their own.
        default_repair: Repair of modules that do not say their own.
        default_pin: Pin of modules that do not say their own.
        is_compact: Whether nested modules take no positions of what is around them.
        has_leads: Whether there are positions for a primer before each primed module.
        modules: Filled by `place`, in document order, the root first.
        unions: Filled by `place`, in document order.
        cursor: The next position.
    """

    tokenizer: LayoutTokenizer
    token_ids: Mapping[str, list[int]]
    default_encode: EncodePolicy
    default_repair: Repair
    default_pin: Pin | None
    is_compact: bool = False
    has_leads: bool = False
    modules: list[ModuleDraft] = field(default_factory=list)
    unions: list[UnionLayout] = field(default_factory=list)
    cursor: int = 0

    def place(self, children: Iterable[SchemaNode], *, bos_id: int | None, preamble: str) -> None:
        """Places a whole schema.

        Args:
            children: The schema's children.
            bos_id: Token for position 0, unless the text that stands there begins with it.
            preamble: Text behind it.
        """
        root = ModuleDraft(
            index=0,
            path="",
            parent=None,
            union=None,
            start=0,
            policy="isolated",
            cached=True,
            repair=self.default_repair,
            pin=self.default_pin,
        )
        self.modules.append(root)
        first = self.token_ids[preamble] or self._first_text(children)
        if bos_id is not None and first[:1] != [bos_id]:
            self._text(root, [bos_id])
        self._text(root, self.token_ids[preamble])
        self._fill(root, children)

    def _first_text(self, children: Iterable[SchemaNode]) -> list[int]:
        first = next(items(children, self.tokenizer), None)
        return self.token_ids[first.text] if isinstance(first, Piece) else []

    def _fill(self, draft: ModuleDraft, children: Iterable[SchemaNode]) -> None:
        for item in items(children, self.tokenizer):
            match item:
                case Piece():
                    self._text(draft, self.token_ids[item.text])
                    if item.closes is not None:
                        draft.role_end = RoleEnd(item.closes, self.cursor)
                case Param():
                    self._parameter(draft, item)
                case Module() | Union():
                    self._nested(draft, item)
        draft.end = self.cursor
        num_in_head = draft.num_kept_before(draft.head)
        draft.num_reusable = num_in_head if self.is_compact else len(draft.kept_ids)
        draft.last_descendant = len(self.modules) - 1

    def _nested(self, draft: ModuleDraft, item: Module | Union) -> None:
        start = self.cursor
        draft.head_end = start if draft.head_end is None else draft.head_end
        if isinstance(item, Module):
            self._module(draft, item, union=None)
        else:
            self._union(draft, item)
        if self.is_compact:
            self.cursor = start

    def _text(self, draft: ModuleDraft, token_ids: list[int]) -> None:
        draft.add_text(token_ids, self.cursor)
        self.cursor += len(token_ids)

    def _parameter(self, draft: ModuleDraft, param: Param) -> None:
        draft.parameters[param.name] = ParameterSlot(param.name, self.cursor, param.length)
        given = self.token_ids[param.placeholder][: param.length] if param.placeholder else []
        padding = [self.tokenizer.placeholder_id] * (param.length - len(given))
        draft.add_placeholders(given + padding, self.cursor)
        self.cursor += param.length

    def _module(self, parent: ModuleDraft, module: Module, union: int | None) -> None:
        index = parent.children[module.name] = len(self.modules)
        policy = module.encode or self.default_encode
        if policy == "primed" and self.has_leads:
            self.cursor += sum(map(len, self.tokenizer.primer))
        draft = ModuleDraft(
            index=index,
            path=parent.path_of(module.name),
            parent=parent.index,
            union=union,
            start=self.cursor,
            policy=policy,
            cached=module.cached,
            repair=module.repair or self.default_repair,
            pin=self.default_pin if module.pin is None else module.pin or None,
        )
        self.modules.append(draft)
        self._fill(draft, module.children)

    def _union(self, parent: ModuleDraft, union: Union) -> None:
        index, start, end = len(self.unions), self.cursor, self.cursor
        # Takes its place before the unions nested in its members: document order.
        self.unions.append(UnionLayout(parent.index, (), None))
        for member in union.members:
            self.cursor = start
            self._module(parent, member, index)
            end = max(end, self.cursor)
        self.cursor = end
        members = tuple(parent.children[member.name] for member in union.members)
        default = None if union.default is None else parent.children[union.default]
        self.unions[index] = UnionLayout(parent.index, members, default)
