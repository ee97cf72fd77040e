"""Anchors: what stands before a text while it is tokenised."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vllm_promptcache.errors import UnsupportedError
from vllm_promptcache.layout.piecewise import Piecewise, PlacedText

IDS = {token: token_id for token_id, token in enumerate(("||", "\n\n", "|\n", "|", "\n", "a"))}


class Tokenize:
    """Takes the longest token each time."""

    def __init__(self) -> None:
        self.calls: list[Sequence[str]] = []

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        self.calls.append(texts)
        return [list(self._ids(text)) for text in texts]

    def _ids(self, text: str) -> list[int]:
        token = next((token for token in IDS if text.startswith(token)), None)
        return [] if token is None else [IDS[token], *self._ids(text[len(token) :])]


def encode(anchors: tuple[str, ...], *texts: PlacedText) -> tuple[list[list[int]], int]:
    tokenize = Tokenize()
    return Piecewise(tokenize, anchors).encode(texts), len(tokenize.calls)


def test_another_anchor_stands_in_for_one_that_merges() -> None:
    found, num_calls = encode(("\n", "a"), PlacedText("\na"), PlacedText("a"), PlacedText(""))
    assert found == [[IDS["\n"], IDS["a"]], [IDS["a"]], []]
    assert num_calls == 2


def test_what_stands_before_a_text_is_its_first_anchor() -> None:
    placed = PlacedText("\n", before="|"), PlacedText("a", before="|"), PlacedText("a", before="")
    found, _ = encode(("a",), *placed)
    assert found == [[IDS["\n"]], [IDS["a"]], [IDS["a"]]]


def test_text_that_merges_with_all_anchors_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="merges with what stands before it"):
        encode(("\n", "|"), PlacedText("\na"))


def test_no_anchors() -> None:
    assert encode((), PlacedText("a"), PlacedText("\n", before="|")) == (
        [[IDS["a"]], [IDS["\n"]]],
        1,
    )
