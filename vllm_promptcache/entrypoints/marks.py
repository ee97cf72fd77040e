"""Which parts of a chat's messages are modules: marked ones, and PML that names no schema.

A part of a message is marked with `"module": true`, or as hosted APIs have it (`cache_control`,
`prompt_cache_breakpoint`). There a mark says where a prefix ends that is to be cached, and clients
set it behind a question or an answer as well, which mean nothing without what was said before. So
such marks count only where a document may stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_promptcache.plan.written import Part
from vllm_promptcache.pml import (
    FieldLocation,
    Inline,
    PromptKind,
    PromptNode,
    RoleName,
    Source,
    Text,
    parse_prompt,
    pml_error,
)

OWN_MARK = "module"
"""Key of a part of content that makes it a module."""

HOSTED_MARKS = ("cache_control", "prompt_cache_breakpoint")
"""Keys of a part of content after which hosted APIs cache."""

MIN_NUM_CHARS = 256
"""Length of a module that hosted marks make; what is shorter is computed in no time."""

# Marked texts that are looked for within others; hosted APIs allow four marks.
_MAX_TEXTS = 64


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a part of a message stands.

    Attributes:
        role: Whose message it is, as the client says.
        ends_message: Whether it is the last part of the message.
        is_last: Whether nothing follows it in the conversation.
    """

    role: str
    ends_message: bool
    is_last: bool

    def may_have(self, text: str) -> bool:
        """Whether a text that a hosted mark is at may be a document.

        The last part of a user's message is the question, and what an assistant has said belongs
        to what was said before.
        """
        if len(text) < MIN_NUM_CHARS or self.is_last or self.role == "assistant":
            return False
        return self.role in _DOCUMENTS_ALONE or not self.ends_message


# Whose messages may consist of a document.
_DOCUMENTS_ALONE = ("system", "developer", "tool")


@dataclass(frozen=True, slots=True)
class MarkReader:
    """Says what of a conversation is a module.

    Attributes:
        kind_of: What kind of PML a text is taken for.
        reads_marks: Whether marks count.
        texts: What is marked wherever it stands.
    """

    kind_of: Callable[[str], PromptKind | None]
    reads_marks: bool
    texts: frozenset[str] = frozenset()

    def has_modules(self, messages: Iterable[Any]) -> bool:
        """Whether there may be any. Takes microseconds, since every conversation is asked."""
        return (self.reads_marks and bool(self.texts)) or any(
            text and ((self.reads_marks and is_marked(part)) or self.kind_of(text) == "inline")
            for message in messages
            for part, text in parts_of(message)
        )

    def nodes(
        self, part: Any, text: str, role: RoleName, spot: Spot, place: FieldLocation
    ) -> Sequence[Part]:
        """What the text of a part consists of.

        Args:
            part: The part.
            text: Its text.
            role: In whose message it is encoded if it is a module.
            spot: Where it stands.
            place: The same, for errors.

        Raises:
            PMLError: It is PML that is malformed, or has what a message cannot hold.
        """
        if self.kind_of(text) == "inline":
            prompt = parse_prompt(text)
            return [_in_message(node, role, prompt.source) for node in prompt.children]
        if self.reads_marks and (has_own_mark(part) or (is_marked(part) and spot.may_have(text))):
            return [_inline(text, role, place)]
        if not self.texts or not self.reads_marks:
            return [Text(text, place)]
        return [
            _inline(piece, role, place)
            if piece in self.texts and spot.may_have(piece)
            else Text(piece, place)
            for piece in self._pieces(text)
        ]

    def _pieces(self, text: str) -> list[str]:
        """A text cut at the marked texts in it, long ones first: one may hold another."""
        if text in self.texts:
            return [text]
        pieces = [text]
        for marked in sorted(self.texts, key=len, reverse=True)[:_MAX_TEXTS]:
            pieces = [part for piece in pieces for part in self._cut(piece, marked)]
        return pieces

    def _cut(self, piece: str, marked: str) -> Iterator[str]:
        if piece in self.texts or marked not in piece:
            yield piece
            return
        for number, part in enumerate(piece.split(marked)):
            yield from (marked, part)[number == 0 :] if part else (marked,)[number == 0 :]


def has_own_mark(part: Any) -> bool:
    """Whether a part of content says that it is a module."""
    return isinstance(part, Mapping) and part.get(OWN_MARK) not in (None, False)


def is_marked(part: Any) -> bool:
    """Whether a part of content has a mark of any kind."""
    marks = (OWN_MARK, *HOSTED_MARKS)
    return isinstance(part, Mapping) and any(part.get(mark) not in (None, False) for mark in marks)


def _inline(text: str, role: RoleName, place: FieldLocation) -> Inline:
    return Inline(text, role, None, None, None, place)


def parts_of(message: Any) -> Iterator[tuple[Any, str | None]]:
    """Parts of a message's content, each with its text; None for what has none."""
    content = message.get("content") if isinstance(message, Mapping) else None
    for part in [content] if isinstance(content, str) else content or ():
        text = part.get("text") if isinstance(part, Mapping) else part
        yield part, text if isinstance(text, str) else None


def _in_message(node: PromptNode, role: RoleName, source: Source) -> Part:
    if isinstance(node, Inline):
        return replace(node, role=role)
    if isinstance(node, Text):
        return node
    message = "a prompt without a schema can have text and modules only where it is a message"
    raise pml_error(source, node.location, message, "write its roles as messages of the chat")
