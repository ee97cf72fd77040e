"""Tokens that a prompt adds to its modules: arguments and text (paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TypeAlias

from vllm_promptcache.layout.piecewise import PlacedText
from vllm_promptcache.layout.schema_layout import RoleEnd
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.plan.prompt_plan import NewTokens
from vllm_promptcache.plan.resolve import ResolvedPrompt, TextGroup
from vllm_promptcache.pml.ast import Prompt
from vllm_promptcache.pml.diagnostics import pml_error, quote

TokenIds: TypeAlias = Mapping[PlacedText, list[int]]


@dataclass(frozen=True, slots=True)
class TextFrame:
    """Text around the new text that stands behind all imports.

    Attributes:
        before: Text before it.
        behind: Text behind it.
        behind_user_only: Whether `behind` is for prompts that end with a user message.
    """

    before: str = ""
    behind: str = ""
    behind_user_only: bool = False


def check_size(
    prompt: Prompt,
    resolved: ResolvedPrompt,
    tokenizer: LayoutTokenizer,
    frame: TextFrame,
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
    num_chars = len(frame.before) + len(frame.behind)
    for group in (*resolved.inner, *resolved.trailing):
        num_chars += sum(len(piece.text) for piece in group.pieces)
    if not tokenizer.may_fit(num_chars, max_model_len):
        message = (
            f"the prompt has {num_chars} characters of new text, "
            f"more than the model's {max_model_len} tokens hold"
        )
        raise pml_error(prompt.source, prompt.location, message, "shorten it")


def tokenize(resolved: ResolvedPrompt, tokenizer: LayoutTokenizer, frame: TextFrame) -> TokenIds:
    """Tokenises all texts of a prompt in one call, which costs more than a short text's tokens."""
    texts = {PlacedText(given.argument.value) for given in resolved.arguments}
    for group in (*resolved.inner, *resolved.trailing):
        texts.update(piece.placed for piece in group.pieces)
    texts.update(map(PlacedText, filter(None, (frame.before, frame.behind))))
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


def place_text(
    resolved: ResolvedPrompt, token_ids: TokenIds, frame: TextFrame, starts: Iterable[int]
) -> list[NewTokens]:
    """Places new text between the imports, then the rest of it behind everything else.

    Args:
        resolved: The prompt.
        token_ids: What `tokenize` returned.
        frame: Text around the text behind all imports, a generation prompt among others.
        starts: First position of each group of `resolved.inner`.
    """
    ends = (module.position_runs[-1].end for module in resolved.modules if module.token_ids)
    role_ends = [module.role_end for module in resolved.modules if module.role_end is not None]
    text = _PlacedText(token_ids, max(ends, default=0), role_ends)
    for group, start in zip(resolved.inner, starts, strict=True):
        text.add(group, start)
    if frame.before:
        text.append("", token_ids[PlacedText(frame.before)], text.end)
    for group in resolved.trailing:
        text.add(group, text.end)
    if frame.behind and (text.ends_with_user() or not frame.behind_user_only):
        text.append("", token_ids[PlacedText(frame.behind)], text.end)
    return text.new


@dataclass(slots=True)
class _PlacedText:
    """New text so far.

    Attributes:
        token_ids: Tokens of each text.
        end: One past the last position that a module or text takes.
        role_ends: Where chat roles close, in modules and in text.
        new: The text's tokens.
    """

    token_ids: TokenIds
    end: int
    role_ends: list[RoleEnd]
    new: list[NewTokens] = field(default_factory=list)

    def add(self, group: TextGroup, position: int) -> None:
        for piece in group.pieces:
            position = self.append(group.scope.path, self.token_ids[piece.placed], position)
            if piece.closes is not None:
                self.role_ends.append(RoleEnd(piece.closes, position))

    def append(self, owner: str, token_ids: list[int], position: int) -> int:
        """Adds tokens and returns the position behind them."""
        if token_ids:
            self.new.append(NewTokens("text", owner, token_ids, position))
        self.end = max(self.end, position + len(token_ids))
        return position + len(token_ids)

    def ends_with_user(self) -> bool:
        """Whether a user message closes behind everything else."""
        # The sort is stable: where wrappers are empty, the later role counts.
        last = sorted(self.role_ends, key=attrgetter("position"))[-1:]
        return any(end.role == "user" and end.position >= self.end for end in last)
