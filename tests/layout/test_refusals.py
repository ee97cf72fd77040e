"""Schemas that parse but cannot be laid out."""

from __future__ import annotations

import pytest

from tests.layout.compiling import Compiler
from tests.layout.word_tokenizer import WordTokenizer
from vllm_promptcache.errors import UnsupportedError
from vllm_promptcache.layout.placement import FreePlacement

SCAFFOLD = "<scaffold modules='a b'/>"


def test_longer_than_the_model() -> None:
    children = "one <union><module name='a'>two</module><module name='b'>two three</module></union>"
    error = Compiler().refused(children, max_model_len=2)
    assert error.message == "the schema has 3 positions, more than the model's 2"
    assert (error.line, error.column) == (1, 1)
    assert Compiler().compile(children, max_model_len=3).num_tokens == 3


def test_what_is_too_long_is_mended_by_what_helps() -> None:
    modules = "<module name='a'>one two</module><module name='b'>three four five</module>"
    error = Compiler().refused(modules, max_model_len=4)
    assert error.hint.startswith('set `layout="compact"`')
    assert Compiler().compile(modules, 'layout="compact"', max_model_len=4)
    for attributes in ("", 'layout="compact"'):
        error = Compiler().refused(modules, attributes, max_model_len=2)
        assert error.hint == "shorten it: the longest part is `b`"
        error = Compiler().refused("one two three " + modules, attributes, max_model_len=2)
        assert error.hint == "shorten it: the longest part is text outside of all modules"


def test_scaffolds_that_no_prompt_can_use() -> None:
    modules = "<union><module name='a'>1</module>\n<module name='b'>2</module></union>"
    error = Compiler().refused(f"{modules}\n<scaffold modules='a b'/>")
    assert error.message == "the scaffold names `a` and `b`"
    assert "members of one union" in error.hint
    assert (error.line, error.column) == (3, 1)
    error = Compiler().refused("<module name='a'/><module name='b' cache='false'/>" + SCAFFOLD)
    assert error.message == 'the scaffold names `b`, which has `cache="false"`'


def test_a_free_order_needs_a_compact_layout() -> None:
    error = Compiler().refused("one", 'order="any"')
    assert error.message == '`order="any"` goes with `layout="compact"` only'
    free = Compiler().compile("one", 'order="any" layout="compact"')
    assert isinstance(free.placement, FreePlacement)


def test_modules_of_exact_schemas_cannot_be_pinned() -> None:
    error = Compiler().refused('<module name="a" pin="true">one</module>', 'encode="exact"')
    assert error.message == 'modules of a schema with `encode="exact"` cannot be pinned'


def test_a_tokenizer_without_placeholder() -> None:
    compiler = Compiler(WordTokenizer(has_unk=False))
    with pytest.raises(UnsupportedError, match="stand in for an argument"):
        compiler.compile('<module name="m"><param name="p" len="1"/></module>')
