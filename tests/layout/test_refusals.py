"""Schemas that parse but cannot be laid out."""

from __future__ import annotations

import pytest

from tests.layout.compiling import Compiler
from tests.layout.word_tokenizer import WordTokenizer
from vllm_promptcache.errors import UnsupportedError


def test_longer_than_the_model() -> None:
    children = "one <union><module name='a'>two</module><module name='b'>two three</module></union>"
    error = Compiler().refused(children, max_model_len=2)
    assert error.message == "the schema has 3 positions, more than the model's 2"
    assert (error.line, error.column) == (1, 1)
    assert Compiler().compile(children, max_model_len=3).num_tokens == 3


def test_a_compact_layout_has_no_anchored_modules() -> None:
    error = Compiler().refused(
        '<module name="a" encode="anchored">one</module>', 'layout="compact"'
    )
    assert error.message == '`encode="anchored"` does not go with `layout="compact"`'


def test_scaffolds_are_not_there_yet() -> None:
    children = "<module name='a'/>\n<module name='b'/>\n<scaffold modules='a b'/>"
    error = Compiler().refused(children)
    assert error.message == "`<scaffold>` is not supported yet"
    assert (error.line, error.column) == (3, 1)


def test_a_tokenizer_without_placeholder() -> None:
    compiler = Compiler(WordTokenizer(has_unk=False))
    with pytest.raises(UnsupportedError, match="stand in for an argument"):
        compiler.compile('<module name="m"><param name="p" len="1"/></module>')
