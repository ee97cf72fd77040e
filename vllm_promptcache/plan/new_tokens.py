"""Tokens that a prompt adds to its modules: arguments and text (paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TypeAlias

from vllm_promptcache.layout.content import TextGroup
from vllm_promptcache.layout.module_layout import RoleMark
from vllm_promptcache.layout.piecewise import PlacedText
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.plan.parts import NewTokens
from vllm_promptcache.plan.resolved import ResolvedPrompt
from vllm_promptcache.pml.ast import Prompt
from vllm_promptcache.pml.diagnostics import pml_error, quote

TokenIds: TypeAlias = Mapping[PlacedText, list[int]]


def check_size(
    prompt: Prompt,
    resolved: ResolvedPrompt,
    tokenizer: LayoutTokenizer,
    max_model_len: int,
) -> None:
    """Refuses text that cannot fit before it is tokenised, which would take long.

    Raises:
        PMLError: An argument, or all new text, has too many characters.
    """
    for given in resolved.arguments:
        num_chars, slot = len(given.argument.value), given.slot
        if not tokenizer.may_fit(num_chars, slot.length):
            message = (
                f"the argument {quote(slot.name)} has {num_chars} characters, "
                f"more than the {slot.length} tokens of its parameter hold"
            )
            location = given.argument.location
            raise pml_error(prompt.source, location, message, "shorten it, or raise `len`")
    groups = (*resolved.inner, *resolved.trailing)
    num_chars = sum(len(piece.text) for group in groups for piece in group.pieces)
    if not tokenizer.may_fit(num_chars, max_model_len):
        message = (
            f"the prompt has {num_chars} characters of new text, "
            f"more than the model's {max_model_len} tokens hold"
        )
        raise pml_error(prompt.source, prompt.location, message, "shorten it")


def tokenize(resolved: ResolvedPrompt, tokenizer: LayoutTokenizer) -> TokenIds:
    """Tokenises all texts of a prompt in one call, which costs more than a short text's tokens."""
    texts = {PlacedText(given.argument.value) for given in resolved.arguments}
    for group in (*resolved.inner, *resolved.trailing):
        texts.update(piece.placed for piece in group.pieces)
    return dict(zip(texts, tokenizer.encode_placed(list(texts)), strict=True))


def place_arguments(
    prompt: Prompt, resolved: ResolvedPrompt, token_ids: TokenIds
) -> Iterator[NewTokens]:
    """Puts each argument on the first positions of its parameter.

    Raises:
        PMLError: An argument has more tokens than its parameter takes.
    """
    for given in resolved.arguments:
        value, slot = token_ids[PlacedText(given.argument.value)], given.slot
        if len(value) > slot.length:
            message = (
                f"the argument {quote(slot.name)} has {len(value)} tokens, "
                f"but its parameter takes {slot.length}"
            )
            location = given.argument.location
            raise pml_error(prompt.source, location, message, "shorten it, or raise `len`")
        if value:
            yield NewTokens("argument", f"{given.module.path}:{slot.name}", value, slot.start)


def place_text(resolved: ResolvedPrompt, token_ids: TokenIds, starts: Iterable[int]) -> NewText:
    """Places new text between the imports, then the rest of it behind everything else.

    Args:
        resolved: The prompt.
        token_ids: What `tokenize` returned.
        starts: First position of each group of `resolved.inner`.
    """
    ends = (module.position_runs[-1].end for module in resolved.modules if module.token_ids)
    marks = [mark for module in resolved.modules for mark in module.role_marks]
    text = NewText(max(ends, default=0), marks)
    for group, start in zip(resolved.inner, starts, strict=True):
        text.add(group, token_ids, start)
    for group in resolved.trailing:
        text.add(group, token_ids, text.end)
    return text


@dataclass(slots=True)
class NewText:
    """New text so far.

    Attributes:
        end: One past the last position that a module or text takes.
        marks: Where chat roles begin and end, in modules and in text.
        new: The text's tokens.
    """

    end: int
    marks: list[RoleMark]
    new: list[NewTokens] = field(default_factory=list)

    def add(self, group: TextGroup, token_ids: TokenIds, position: int) -> None:
        """Places text with no import in between."""
        for piece in group.pieces:
            end = self.append(token_ids[piece.placed], position, group.scope.path)
            if (edge := piece.edge) is not None:
                self.marks.append(RoleMark(edge.role, edge.opens, position if edge.opens else end))
            position = end

    def append(self, token_ids: list[int], position: int, owner: str = "") -> int:
        """Adds tokens and returns the position behind them."""
        if token_ids:
            self.new.append(NewTokens("text", owner, token_ids, position))
        self.end = max(self.end, position + len(token_ids))
        return position + len(token_ids)

    @property
    def ends_with_user(self) -> bool:
        """Whether a user message closes behind everything else."""
        ends = (mark for mark in self.marks if not mark.opens)
        # The sort is stable: where wrappers are empty, the later role counts.
        last = sorted(ends, key=attrgetter("position"))[-1:]
        return any(end.role == "user" and end.position >= self.end for end in last)
