"""Tokenises texts that are parts of a document, whatever the tokenizer does to the ends of a text.

A tokenizer takes each text for a whole document. Many add something to it or take something away:
SentencePiece puts a blank before it (the dummy prefix), byte-level BPE may (`add_prefix_space`),
others drop blanks at the ends or begin a new word. Read one behind the other, such parts are not
what was written. So a part is tokenised behind an anchor, whose tokens are cut off again, if that
makes it right; it is found out by trying (`layout.probes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from vllm_promptcache.errors import UnsupportedError
from vllm_promptcache.pml.diagnostics import quote

Encode: TypeAlias = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True, slots=True)
class PlacedText:
    """A text and what stands before it: all that its tokens depend on.

    Attributes:
        text: The text.
        before: Empty at the start of a document; a special token right before it, with the white
            space behind that, since some tokenizers begin anew there; None anywhere else.
    """

    text: str
    before: str | None = None


@dataclass(frozen=True, slots=True)
class Piecewise:
    """Tokenises parts of documents.

    Attributes:
        tokenize: The tokenizer, without the special tokens that it adds.
        anchors: Texts to stand before a part, best first; empty where parts are tokenised as they
            are.
        opening: Tokens that begin a document whose first text is not known when it is tokenised.
    """

    tokenize: Encode
    anchors: tuple[str, ...] = ()
    opening: tuple[int, ...] = ()

    def encode(self, texts: Sequence[PlacedText]) -> list[list[int]]:
        """Tokenises many texts, in one call unless an anchor merges with some of them.

        Raises:
            UnsupportedError: All anchors merge with a text.
        """
        if not self.anchors:
            return self.tokenize([placed.text for placed in texts])
        found: dict[int, list[int]] = {}
        left, attempt = list(range(len(texts))), 0
        while left:
            pairs = [(self._anchor(texts[index], attempt), texts[index].text) for index in left]
            for index, token_ids in zip(left, self.behind(pairs), strict=True):
                if token_ids is not None:
                    found[index] = token_ids
            left = [index for index in left if index not in found]
            attempt += 1
        return [found[index] for index in range(len(texts))]

    def behind(self, pairs: Iterable[tuple[str, str]]) -> list[list[int] | None]:
        """Tokenises texts behind anchors, in one call.

        Args:
            pairs: An anchor and a text each.

        Returns:
            Token ids of each text, None where the anchor's tokens are others than without it.
        """
        pairs = list(pairs)
        anchors = list(dict.fromkeys(anchor for anchor, _ in pairs))
        encoded = self.tokenize([*anchors, *(anchor + text for anchor, text in pairs)])
        # At the start of a document nothing is cut off, whatever the tokens of no text are.
        heads = dict(zip(anchors, encoded, strict=False)) | {"": []}
        whole = zip(pairs, encoded[len(anchors) :], strict=True)
        return [_without_start(token_ids, heads[anchor]) for (anchor, _), token_ids in whole]

    def _anchor(self, placed: PlacedText, attempt: int) -> str:
        own = () if placed.before is None else (placed.before,)
        anchors = (*own, *self.anchors)
        if attempt < len(anchors):
            return anchors[attempt]
        raise UnsupportedError(
            "the model's tokenizer cannot tokenise a text as part of another one: "
            f"{quote(placed.text)} merges with what stands before it",
            "begin the text with another character",
        )


def _without_start(token_ids: list[int], start: list[int]) -> list[int] | None:
    return token_ids[len(start) :] if token_ids[: len(start)] == start else None
