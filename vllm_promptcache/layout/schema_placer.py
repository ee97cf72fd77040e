"""Gives every piece of a schema its positions (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vllm_promptcache.layout.content import Piece, first_text, items
from vllm_promptcache.layout.drafts import ModuleDraft
from vllm_promptcache.layout.module_layout import ParameterSlot, RoleMark
from vllm_promptcache.layout.piecewise import PlacedText
from vllm_promptcache.layout.placement import Placement
from vllm_promptcache.layout.primer_tokens import PrimerTokens
from vllm_promptcache.layout.schema_layout import UnionLayout
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.pml.ast import Module, Param, Pin, SchemaNode, Union
from vllm_promptcache.policies import Policy


@dataclass(slots=True)
class SchemaPlacer:
    """Walks a schema in document order and hands out positions from 0 on.

    Attributes:
        tokenizer: Knows the chat roles and the placeholder token.
        token_ids: Tokens of the preamble and of every text in `texts_in`.
        placement: How modules lie in each other.
        leads: Primers that have positions before each primed module, by path.
        default_policy: Policy of modules that do not say their own.
        default_pin: Pin of modules that do not say their own.
        modules: Filled by `place`, in document order, the root first.
        unions: Filled by `place`, in document order.
        cursor: The next position.
    """

    tokenizer: LayoutTokenizer
    token_ids: Mapping[PlacedText, list[int]]
    placement: Placement
    leads: Mapping[str, PrimerTokens]
    default_policy: Policy
    default_pin: Pin | None
    modules: list[ModuleDraft] = field(default_factory=list)
    unions: list[UnionLayout] = field(default_factory=list)
    cursor: int = 0

    def place(
        self, children: Sequence[SchemaNode], *, start_ids: list[int], start: str, preamble: str
    ) -> None:
        """Places a whole schema.

        Args:
            children: The schema's children.
            start_ids: Tokens for positions from 0 on, unless the text there begins with them.
            start: Text that stands there by itself: BOS where the chat template writes it, or none.
            preamble: Text behind it.
        """
        root = ModuleDraft(
            index=0,
            path="",
            parent=None,
            union=None,
            start=0,
            policy=self.default_policy.changed("isolated", None),
            cached=True,
            pin=self.default_pin,
        )
        self.modules.append(root)
        before = self.tokenizer.placed(preamble, start) if preamble else None
        first = before or first_text(children, self.tokenizer, start)
        if self._ids(first)[: len(start_ids)] != start_ids:
            self._text(root, start_ids)
        if first is None and not start and self.tokenizer.opening:
            # The document begins with whatever is imported first, or with new text.
            self._text(root, self.tokenizer.opening)
        self._text(root, self._ids(before))
        self._fill(root, children, preamble or start)

    def _ids(self, placed: PlacedText | None) -> list[int]:
        return [] if placed is None else self.token_ids[placed]

    def _fill(
        self, draft: ModuleDraft, children: Iterable[SchemaNode], before: str | None = None
    ) -> None:
        for item in items(children, self.tokenizer, before):
            match item:
                case Piece():
                    start = self.cursor
                    self._text(draft, self.token_ids[item.placed])
                    if (edge := item.edge) is not None:
                        position = start if edge.opens else self.cursor
                        draft.role_marks.append(RoleMark(edge.role, edge.opens, position))
                case Param():
                    self._parameter(draft, item)
                case Module() | Union():
                    self._nested(draft, item)
        draft.end = self.cursor
        draft.num_reusable = self.placement.num_reusable(draft)
        draft.last_descendant = len(self.modules) - 1

    def _nested(self, draft: ModuleDraft, item: Module | Union) -> None:
        start = self.cursor
        draft.head_end = start if draft.head_end is None else draft.head_end
        if isinstance(item, Module):
            self._module(draft, item, union=None)
        else:
            self._union(draft, item)
        self.cursor = self.placement.behind(start, self.cursor)

    def _text(self, draft: ModuleDraft, token_ids: list[int]) -> None:
        draft.add_text(token_ids, self.cursor)
        self.cursor += len(token_ids)

    def _parameter(self, draft: ModuleDraft, param: Param) -> None:
        draft.parameters[param.name] = ParameterSlot(param.name, self.cursor, param.length)
        placed = PlacedText(param.placeholder) if param.placeholder else None
        given = self._ids(placed)[: param.length]
        padding = [self.tokenizer.placeholder_id] * (param.length - len(given))
        draft.add_placeholders(given + padding, self.cursor)
        self.cursor += param.length

    def _module(self, parent: ModuleDraft, module: Module, union: int | None) -> None:
        index = parent.children[module.name] = len(self.modules)
        policy = self.default_policy.changed(module.encode, module.repair)
        path = parent.path_of(module.name)
        if policy.encode == "primed" and path in self.leads:
            self.cursor += self.leads[path].num_tokens
        draft = ModuleDraft(
            index=index,
            path=path,
            parent=parent.index,
            union=union,
            start=self.cursor,
            policy=policy,
            cached=module.cached,
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
