"""A prompt as the first messages of a conversation.

What the template writes around these messages, and behind them, is read off the conversation that
the request is about, rendered with probes in their place. So a plan holds the very text of the same
conversation in plain messages, or is refused.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Protocol

from vllm_promptcache.errors import PlanError
from vllm_promptcache.layout.module_layout import RoleMark
from vllm_promptcache.layout.piecewise import PlacedText
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.plan.new_tokens import NewText
from vllm_promptcache.pml.ast import Prompt, RoleName
from vllm_promptcache.pml.diagnostics import pml_error


class Chat(Protocol):
    """A conversation whose first user message is a PML prompt.

    Attributes:
        key: Tells what the request gives the chat template beside messages.
        system: Texts of the system messages before the prompt.
        before: Text of that user message before the document.
        behind: Text of that user message behind the document.
    """

    key: bytes
    system: Sequence[str]
    before: str
    behind: str

    def render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
        """Renders other messages as the request's would be.

        Raises:
            Exception: Whatever the template raises.
        """

    def gaps(self, roles: Sequence[RoleName]) -> list[str]:
        """Renders the conversation with messages of these roles in place of the first ones.

        Returns:
            Text before, between and behind them; with all further messages, `[len(roles) + 1]`.

        Raises:
            UnsupportedError: The template does not write them one behind the other.
        """


class TemplateChanged(Exception):
    """The template writes other text around messages than a plan was made with."""


def turns(
    prompt: Prompt, chat: Chat, tokenizer: LayoutTokenizer, max_model_len: int, text: NewText
) -> list[int]:
    """Tokens of a conversation behind the messages of its prompt.

    Args:
        prompt: The prompt.
        chat: The conversation.
        tokenizer: Knows the parts of the template that the prompt was laid out with.
        max_model_len: Positions the model has.
        text: The prompt's text, and where its messages begin and end.

    Raises:
        PMLError: The prompt is no sequence of messages, or what follows is too long.
        UnsupportedError: The template does not write such a conversation.
        TemplateChanged: It writes it, but otherwise.
    """
    found = messages(text.marks)
    starts = [start for _, start, _ in found]
    for new in text.new:
        index = bisect_right(starts, new.start) - 1
        if index < 0 or new.end > found[index][2]:
            message = "text of the prompt stands outside of all messages, which a chat cannot have"
            raise pml_error(prompt.source, prompt.location, message, "put it into `<user>`")
    if not found:
        raise pml_error(prompt.source, prompt.location, "the prompt has no message", "write one")
    names = [role for role, _, _ in found]
    behind = tokenizer.roles.behind(names, chat.gaps(names), bos=tokenizer.bos_text)
    if behind is None:
        raise TemplateChanged
    if not tokenizer.may_fit(len(behind), max_model_len):
        message = (
            f"the conversation has {len(behind)} characters behind the prompt, "
            f"more than the model's {max_model_len} tokens hold"
        )
        raise pml_error(prompt.source, prompt.location, message, "leave out turns")
    placed = tokenizer.placed(behind, tokenizer.roles.wrappers[names[-1]].suffix or None)
    # In most conversations nothing else follows.
    if placed == PlacedText(tokenizer.roles.generation_prompt):
        return tokenizer.generation_prompt
    return tokenizer.encode_placed([placed])[0]


def messages(marks: Iterable[RoleMark]) -> list[tuple[RoleName, int, int]]:
    """Messages by position: role, first position, one past the last.

    Raises:
        PlanError: One stands inside another one.
    """
    # Where one ends and the next one begins, the end comes first.
    ordered = sorted(marks, key=lambda mark: (mark.position, mark.opens))
    starts, ends = ordered[::2], ordered[1::2]
    spans = []
    for start, end in zip(starts, ends, strict=False):
        if not start.opens or end.opens or start.role != end.role:
            break
        spans.append((start.role, start.position, end.position))
    if 2 * len(spans) != len(ordered):
        raise PlanError(
            "the prompt has a message inside another one, which a chat cannot have",
            "leave the inner role out, or put imports and text of a message into one role",
        )
    return spans
