"""The text of a prompt's tokens is the text that was written, with every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from tests.layout.reading import assert_reads, decoded, knows, tokenizer_of, tokens
from tests.layout.tokenizers import FAITHFUL, REFUSED, llama, mistral
from vllm_promptcache.errors import UnsupportedError
from vllm_promptcache.layout import LayoutTokenizer

WORDS = ("net", "to", "no", "The", "prompt", "it's", "Un", "x", "A", "zzz")
MARKS = ("$", "(", ").", ".", ",", "'", '"', "#", "|", "||", "<", "-", "%", "0", "45", "007")
BLANKS = (" ", " ", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "▁")
OTHERS = ("\u0301", "e\u0301", "é", "ß", "中文", "日", "🙂", "👩\u200d💻", "\ufb01", "가")

# They do not cut a text into words before they merge characters, so that only merges matter.
WITHOUT_WORDS = ("llama", "mistral", "sentencepiece")
AS_THEY_ARE = ("byte-level", "nfc", "lower", "never", "tekken", "tiktoken", "bare")

texts = st.lists(st.one_of(map(st.sampled_from, (WORDS, MARKS, BLANKS, OTHERS))), max_size=16).map(
    "".join
)
cuts = st.lists(st.integers(0, 40), max_size=6)
many = settings(deadline=None, max_examples=40)


def parts_of(text: str, cuts: Sequence[int]) -> list[str]:
    """A text cut anywhere; parts may be empty."""
    ends = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(ends)]


def encoded(layout: LayoutTokenizer, parts: Sequence[str]) -> list[int]:
    """Tokens of the parts of a document."""
    placed, before = [], ""
    for part in filter(None, parts):
        placed.append(layout.placed(part, before))
        before = part
    return [token_id for token_ids in layout.encode_placed(placed) for token_id in token_ids]


@pytest.mark.parametrize("kind", FAITHFUL)
@given(text=texts, cuts=cuts)
@many
def test_parts_read_as_their_text(kind: str, text: str, cuts: Sequence[int]) -> None:
    plain, layout = tokenizer_of(kind)
    parts = parts_of(text, cuts)
    token_ids = encoded(layout, parts)
    assume(knows(plain, token_ids, tokens(plain, text)))
    assert_reads(plain, token_ids, text)


@pytest.mark.parametrize("kind", FAITHFUL)
@given(text=texts, cuts=cuts)
@many
def test_document_may_begin_with_any_part(kind: str, text: str, cuts: Sequence[int]) -> None:
    plain, layout = tokenizer_of(kind)
    inside = layout.encode(parts_of(text, cuts))
    token_ids = [*layout.opening, *(token_id for part in inside for token_id in part)]
    assume(knows(plain, token_ids, tokens(plain, text)))
    assert_reads(plain, token_ids, text)


@pytest.mark.parametrize("kind", [kind for kind in FAITHFUL if kind.startswith(WITHOUT_WORDS)])
@given(text=texts, cuts=cuts)
@many
def test_cut_between_tokens_changes_none(kind: str, text: str, cuts: Sequence[int]) -> None:
    """Tokens are those of plain serving unless one of them lies across the border of a part."""
    plain, layout = tokenizer_of(kind)
    whole = tokens(plain, text)
    heads = [decoded(plain, whole[:count]) for count in range(1, len(whole))]
    borders = [len(head) for head in heads if head and text.startswith(head)]
    chosen = [borders[cut % len(borders)] for cut in cuts if borders]
    assume(decoded(plain, whole) == text)
    assert encoded(layout, parts_of(text, chosen)) == whole


@pytest.mark.parametrize("kind", [kind for kind in FAITHFUL if kind.endswith(AS_THEY_ARE)])
@given(text=texts, cuts=cuts)
@many
def test_parts_are_tokenised_as_they_are_where_that_is_right(
    kind: str, text: str, cuts: Sequence[int]
) -> None:
    plain, layout = tokenizer_of(kind)
    parts = list(filter(None, parts_of(text, cuts)))
    alone = [token_id for part in parts for token_id in tokens(plain, part)]
    assert encoded(layout, parts) == alone == [i for ids in layout.encode(parts) for i in ids]
    assert layout.opening == []


@pytest.mark.parametrize("kind", REFUSED)
def test_other_tokenizers_are_refused(kind: str) -> None:
    build, reason = REFUSED[kind]
    with pytest.raises(UnsupportedError, match=f"tokenizer cannot .* part by part: it {reason}"):
        LayoutTokenizer(build()).encode(["text"])


@pytest.mark.parametrize("scheme", ["legacy", "first", "always"])
@pytest.mark.parametrize("rstrip", [False, True])
def test_behind_special_tokens(scheme: str, rstrip: bool) -> None:
    """Some tokenizers put a blank there too, or drop one; it is that of plain serving."""
    special = [AddedToken(text, rstrip=rstrip) for text in ("<|user|>", "<|end|>", "<|bot|>")]
    plain = llama(scheme, special=special)
    parts = ["<|user|>\n", "Hi", "<|end|>\n", "<|bot|>", "Yes", "<|end|>"]
    assert encoded(LayoutTokenizer(plain), parts) == tokens(plain, "".join(parts))


@pytest.mark.parametrize("kind", ["byte-level", "llama-legacy"])
def test_texts_are_tokenised_in_one_call(kind: str) -> None:
    plain = FAITHFUL[kind]()
    calls: list[list[str]] = []

    class Counting(type(plain)):  # type: ignore[misc]
        def __call__(self, text: list[str], **options: Any) -> Any:
            calls.append(text)
            return super().__call__(text, **options)

    plain.__class__ = Counting
    layout = LayoutTokenizer(plain)
    layout.encode(["once"])
    calls.clear()
    layout.encode([f"text {number}" for number in range(1000)])
    assert len(calls) == 1
    # An anchor is one text more.
    assert len(calls[0]) == (1000 if kind == "byte-level" else 1001)


def test_vllms_own_tokenizer_has_no_unknown_token() -> None:
    layout = LayoutTokenizer(mistral("tokenizer.model.v1"))
    assert layout.encode([" "]) == [[layout.placeholder_id]]
    assert layout.bos_text == ""
