"""A text that a chat template has written, with modules in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from vllm_promptcache.pml.ast import Inline, Location, Prompt, Source, Text

Part: TypeAlias = Text | Inline


@dataclass(frozen=True, slots=True)
class WrittenText:
    """A whole prompt as the model reads it; BOS is in it, or is to be nowhere.

    Attributes:
        beginning: What it begins with and others do as well, such as a system message: it is read
            like the text of a schema around its modules. May be empty.
        parts: What follows, in order; no two texts in a row.
    """

    beginning: str
    parts: Sequence[Part]

    @property
    def text(self) -> str:
        """All of it."""
        return self.beginning + "".join(part.text for part in self.parts)

    @property
    def prompt(self) -> Prompt:
        """What follows the beginning."""
        source, place = Source("<prompt>", ""), Location(1, 1)
        return Prompt(None, False, None, None, tuple(self.parts), source, place)
