"""A text that somebody else has written, with modules in it: a chat template, mostly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from vllm_promptcache.pml.ast import Inline, Location, Prompt, Source, Text

Part: TypeAlias = Text | Inline


@dataclass(frozen=True, slots=True)
class WrittenText:
    """A whole prompt as the model reads it.

    Attributes:
        beginning: What it begins with and others do as well, such as a system message: it is read
            like the text of a schema around its modules. May be empty.
        parts: What follows, in order; no two texts in a row.
        is_chat: Whether a chat template wrote it, so that BOS is in it or is to be nowhere.
    """

    beginning: str
    parts: Sequence[Part]
    is_chat: bool

    @property
    def text(self) -> str:
        """All of it."""
        return self.beginning + "".join(part.text for part in self.parts)

    @property
    def prompt(self) -> Prompt:
        """What follows the beginning."""
        source, place = Source("<prompt>", ""), Location(1, 1)
        return Prompt(None, False, None, None, tuple(self.parts), source, place)
