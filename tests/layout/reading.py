"""What tokens read as, for each kind of tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any
from unicodedata import normalize

from tests.layout.tokenizers import FAITHFUL
from vllm_promptcache.layout import LayoutTokenizer


@cache
def tokenizer_of(kind: str) -> tuple[Any, LayoutTokenizer]:
    """A tokenizer of a kind, plain and as layouts have it."""
    plain = FAITHFUL[kind]()
    return plain, LayoutTokenizer(plain)


def decoded(plain: Any, token_ids: Sequence[int]) -> str:
    try:
        return plain.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    except TypeError:
        return plain.decode(list(token_ids), skip_special_tokens=True)


def tokens(plain: Any, text: str) -> list[int]:
    """Tokens of a text in plain serving."""
    return plain([text], add_special_tokens=False)["input_ids"][0]


def knows(plain: Any, *token_ids: list[int]) -> bool:
    unknown = getattr(plain, "unk_token_id", None)
    return unknown is None or not any(unknown in some for some in token_ids)


def assert_reads(plain: Any, token_ids: Sequence[int], text: str) -> None:
    """Checks that tokens read as a text, or as plain serving reads it."""
    read = comparable(decoded(plain, token_ids))
    assert read in (comparable(text), comparable(decoded(plain, tokens(plain, text))))


def comparable(text: str) -> str:
    """A text without what a normaliser changes in plain serving too, wherever it is cut."""
    # SentencePiece writes a blank as this character, and so cannot tell them apart.
    return normalize("NFKC", text.replace("▁", " "))
