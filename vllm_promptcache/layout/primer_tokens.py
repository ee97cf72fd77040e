"""A primer's text as tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

# Most tokenizers need fewer tokens for the made-up text, but one that knows hardly any words may
# not.
MAX_PRIMER_LEN = 512
"""Tokens of a primer."""

# Behind a line, and behind a sentence: the blank goes with the next one, as in whole texts.
_SENTENCE_END = re.compile(r"(?<=\n)(?!\n)|(?<=[.!?])(?= )|(?<=[。！？])(?!\s)")  # noqa: RUF001


@dataclass(frozen=True, slots=True, eq=False)
class PrimerTokens:
    """The tokens of a primer, sentence by sentence. Equal to itself only."""

    sentences: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, sentences: Iterable[Sequence[int]]) -> PrimerTokens:
        """Takes the tokens of each sentence."""
        return cls(tuple(map(tuple, sentences)))

    def within(self, num_tokens: int) -> PrimerTokens:
        """The first sentences, as far as they have no more tokens together."""
        ends = accumulate(map(len, self.sentences))
        pairs = zip(self.sentences, ends, strict=True)
        return PrimerTokens(tuple(sentence for sentence, end in pairs if end <= num_tokens))

    @property
    def num_tokens(self) -> int:
        """Tokens of all sentences."""
        return sum(map(len, self.sentences))


def sentences_of(text: str) -> list[str]:
    """A text in sentences and lines; put together they are the text."""
    return [sentence for sentence in _SENTENCE_END.split(text) if sentence]
