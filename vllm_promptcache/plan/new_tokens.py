"""What a prompt adds to its schema's modules: arguments, text (paper, section 3.4), others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TypeAlias

from vllm_promptcache.layout.content import Piece, TextGroup
from vllm_promptcache.layout.inline import InlineModule
from vllm_promptcache.layout.module_layout import RoleMark
from vllm_promptcache.layout.piecewise import PlacedText
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.plan.parts import NewTokens
from vllm_promptcache.plan.resolved import ResolvedPrompt
from vllm_promptcache.pml.ast import Inline, Prompt
from vllm_promptcache.pml.diagnostics import pml_error, quote

LayOut: TypeAlias = Callable[[Inline], InlineModule]


@dataclass(frozen=True, slots=True)
class Added:
    """Arguments and pieces of a prompt with their tokens.

    Attributes:
        token_ids: Tokens of arguments and text.
        inline: The modules among the pieces.
    """

    token_ids: Mapping[PlacedText, list[int]]
    inline: Mapping[Inline, InlineModule]

    @staticmethod
    def of(resolved: ResolvedPrompt, tokenizer: LayoutTokenizer, lay_out: LayOut) -> Added:
        """Tokenises all texts in one call, which costs more than a short text's tokens.

        Args:
            resolved: The prompt.
            tokenizer: The tokenizer that its schema was compiled with.
            lay_out: Lays out a module that stands in it.
        """
        pieces = [piece for group in resolved.groups for piece in group.pieces]
        texts = {PlacedText(given.argument.value) for given in resolved.arguments}
        texts.update(piece.placed for piece in pieces if piece.inline is None)
        inline = {piece.inline: lay_out(piece.inline) for piece in pieces if piece.inline}
        encoded = tokenizer.encode_placed(list(texts))
        return Added(dict(zip(texts, encoded, strict=True)), inline)

    def num_tokens(self, group: TextGroup) -> int:
        """Positions that a group takes."""
        return sum(map(self._length, group.pieces))

    def _length(self, piece: Piece) -> int:
        if piece.inline is not None:
            return self.inline[piece.inline].num_tokens
        return len(self.token_ids[piece.placed])


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
    num_chars = sum(len(piece.text) for group in resolved.groups for piece in group.pieces)
    if not tokenizer.may_fit(num_chars, max_model_len):
        message = (
            f"the prompt has {num_chars} characters of new text, "
            f"more than the model's {max_model_len} tokens hold"
        )
        raise pml_error(prompt.source, prompt.location, message, "shorten it")


def place_arguments(prompt: Prompt, resolved: ResolvedPrompt, added: Added) -> Iterator[NewTokens]:
    """Puts each argument on the first positions of its parameter.

    Raises:
        PMLError: An argument has more tokens than its parameter takes.
    """
    for given in resolved.arguments:
        value, slot = added.token_ids[PlacedText(given.argument.value)], given.slot
        if len(value) > slot.length:
            message = (
                f"the argument {quote(slot.name)} has {len(value)} tokens, "
                f"but its parameter takes {slot.length}"
            )
            location = given.argument.location
            raise pml_error(prompt.source, location, message, "shorten it, or raise `len`")
        if value:
            yield NewTokens("argument", f"{given.module.path}:{slot.name}", value, slot.start)


def place_text(resolved: ResolvedPrompt, added: Added, starts: Iterable[int]) -> NewText:
    """Places new text between the imports, then the rest of it behind everything else.

    Args:
        resolved: The prompt.
        added: Its pieces.
        starts: First position of each group of `resolved.inner`.
    """
    ends = (module.position_runs[-1].end for module in resolved.modules if module.token_ids)
    marks = [mark for module in resolved.modules for mark in module.role_marks]
    text = NewText(max(ends, default=0), marks)
    for group, start in zip(resolved.inner, starts, strict=True):
        text.add(group, added, start)
    for group in resolved.trailing:
        text.add(group, added, text.end)
    return text


@dataclass(slots=True)
class NewText:
    """New text so far.

    Attributes:
        end: One past the last position that a module or text takes.
        marks: Where chat roles begin and end, in modules and in text.
        new: The text's tokens.
        inline: Modules in it, each with its first position and the name that it has in the prompt.
    """

    end: int
    marks: list[RoleMark]
    new: list[NewTokens] = field(default_factory=list)
    inline: list[tuple[InlineModule, int, str | None]] = field(default_factory=list)

    def add(self, group: TextGroup, added: Added, position: int) -> None:
        """Places text with no import in between."""
        for piece in group.pieces:
            if piece.inline is not None:
                position = self._inline(added.inline[piece.inline], position, piece.inline.name)
                continue
            end = self.append(added.token_ids[piece.placed], position, group.scope.path)
            if (edge := piece.edge) is not None:
                self.marks.append(RoleMark(edge.role, edge.opens, position if edge.opens else end))
            position = end

    def append(self, token_ids: list[int], position: int, owner: str = "") -> int:
        """Adds tokens and returns the position behind them."""
        if token_ids:
            self.new.append(NewTokens("text", owner, token_ids, position))
        self.end = max(self.end, position + len(token_ids))
        return position + len(token_ids)

    def _inline(self, inline: InlineModule, position: int, name: str | None) -> int:
        end = position + inline.num_tokens
        self.inline.append((inline, position, name))
        self.end = max(self.end, end)
        return end

    @property
    def ends_with_user(self) -> bool:
        """Whether a user message closes behind everything else."""
        ends = (mark for mark in self.marks if not mark.opens)
        # The sort is stable: where wrappers are empty, the later role counts.
        last = sorted(ends, key=attrgetter("position"))[-1:]
        return any(end.role == "user" and end.position >= self.end for end in last)
