"""Chat roles in a schema become text of the module that holds them."""

from __future__ import annotations

import pytest

from tests.layout import templates
from tests.layout.compiling import Compiler, by_path
from tests.layout.word_tokenizer import WordTokenizer
from vllm_promptcache.errors import UnsupportedError
from vllm_promptcache.layout import RoleMark

START, END = "<|im_start|>", "<|im_end|>"


def test_wrappers_belong_to_the_module_with_the_role() -> None:
    compiler = Compiler()
    modules = by_path(
        compiler.compile(
            """<system>Help.</system><user><module name="a">Look.</module></user>
            <module name="b"><assistant>Yes.</assistant></module>"""
        )
    )
    own = f"{START} system Help . {END} {START} user {END}"
    assert compiler.text(modules[""]) == own
    assert compiler.text(modules["a"]) == "Look ."
    assert compiler.text(modules["b"]) == f"{START} assistant Yes . {END}"
    assert modules["a"].start == 7
    assert modules[""].role_marks == (
        RoleMark("system", True, 0),
        RoleMark("system", False, 5),
        RoleMark("user", True, 5),
        RoleMark("user", False, 10),
    )
    assert modules["a"].role_marks == ()
    assert modules["b"].role_marks == (
        RoleMark("assistant", True, modules["b"].start),
        RoleMark("assistant", False, modules["b"].end),
    )


def test_default_system_message_where_the_first_role_is_another() -> None:
    compiler = Compiler()
    layout = compiler.compile('<module name="a"><user>Hi</user></module>')
    assert compiler.placed(layout.root)[1] == "system"
    assert compiler.text(layout.root) == f"{START} system Be nice . {END}"
    assert layout.modules[1].start == 6


def test_no_default_system_message_otherwise() -> None:
    compiler = Compiler()
    assert compiler.text(compiler.compile("Hi").root) == "Hi"
    layout = compiler.compile('<module name="a"><system>Hi</system></module>')
    assert layout.root.token_ids == ()


def test_bos_of_tokenizer_and_template_is_one() -> None:
    compiler = Compiler(WordTokenizer(templates.LLAMA3, bos="<s>", adds_bos=True))
    root = compiler.compile("<user>Hi</user>").root
    assert compiler.text(root) == "<s> <|start|> user <|end|> Hi <|eot|>"


def test_bos_of_the_template_alone_counts_for_roles() -> None:
    compiler = Compiler(WordTokenizer(templates.LLAMA3, bos="<s>"))
    assert compiler.text(compiler.compile("<user>Hi</user>").root).startswith("<s> <|start|>")
    assert compiler.text(compiler.compile("Hi").root) == "Hi"


def test_bos_within_a_wrapper_is_not_doubled() -> None:
    compiler = Compiler(WordTokenizer(templates.LLAMA2, bos="<s>", adds_bos=True))
    root = compiler.compile("<user>Hi</user>").root
    assert compiler.text(root) == "<s> [INST] Hi [/INST]"


def test_ends_of_a_stripped_role_lose_their_white_space() -> None:
    compiler = Compiler(WordTokenizer(templates.LLAMA3, bos="<s>"))
    compiler.compile("<user> one <module name='m'> two </module> three </user> four ")
    texts = compiler.words.calls[-1]
    assert {"one ", " two ", " three", " four "} <= set(texts)


def test_a_role_the_template_lacks_is_refused_where_it_stands() -> None:
    compiler = Compiler(WordTokenizer(templates.GEMMA, bos="<s>"))
    error = compiler.refused("\n<user>Hi</user>\n <system>No</system>")
    assert (error.line, error.column) == (3, 2)
    assert error.message == (
        "the model's chat template has no `<system>` role: it does not render a plain "
        "conversation (System role not supported)"
    )
    assert error.hint == "put the text into a `<user>` element"


def test_a_later_system_message_is_refused_where_the_first_one_is_special() -> None:
    children = "<user>Hi</user><system>No</system>"
    error = Compiler(WordTokenizer(templates.LLAMA31, bos="<s>")).refused(children)
    assert error.message == "the model's chat template has `<system>` only as the first role"
    assert Compiler().compile(children).has_roles


def test_without_a_template_only_roles_are_refused() -> None:
    compiler = Compiler(WordTokenizer())
    assert not compiler.compile("Hi").has_roles
    with pytest.raises(UnsupportedError, match="chat_template is not set"):
        compiler.compile("<user>Hi</user>")
