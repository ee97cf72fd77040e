"""`--prompt-modules-primer`: a file in place of the made-up text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.layout.compiling import Compiler, by_path
from tests.layout.word_tokenizer import WordTokenizer
from vllm_promptcache.entrypoints.primer_file import tokenizer_with_primer
from vllm_promptcache.errors import ClientError
from vllm_promptcache.layout.primer_text import ARTICLES

NUMBERED = "<module name='a'>Document 1:\nx</module><module name='b'>Document 2:\ny</module>"


def primer_of(path: str | None) -> str:
    words = WordTokenizer()
    compiler = Compiler(words)
    compiler.tokenizer = tokenizer_with_primer(words, path)
    layout = compiler.compile(NUMBERED, 'encode="primed" layout="compact"')
    (primer,) = layout.primers
    assert by_path(layout)["a"].context
    return words.text(primer.kept_token_ids)


def test_the_text_of_the_file_is_the_primer(tmp_path: Path) -> None:
    file = tmp_path / "primer.txt"
    file.write_text("\ufeffOne.\r\nTwo – three.", encoding="utf-8")  # noqa: RUF001
    # As it is: not in the form of the modules.
    assert primer_of(str(file)) == "One . Two – three ."  # noqa: RUF001
    link = tmp_path / "link"
    link.symlink_to(file)
    assert primer_of(str(link)) == primer_of(str(file))


def test_without_a_file_it_is_made_up() -> None:
    assert primer_of(None).startswith(f"Document 1 : {ARTICLES[0].title} ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "does not exist or is not a regular file"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        ("Größe".encode("latin-1"), "is not UTF-8 (byte 2)"),
        ("One.".encode("utf-16"), "is not UTF-8 (byte 0)"),
        (b"a\x00b", "holds the character U+0000"),
        (b"word " * 513, "has 513 tokens, more than 512"),
        (b"w" * 70_000, "is larger than the 65536 bytes left"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes | None, problem: str) -> None:
    file = tmp_path / "primer.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ClientError) as caught:
        tokenizer_with_primer(WordTokenizer(), str(file))
    assert str(caught.value) == f"the primer {str(file)!r} {problem}"
