"""Chat roles in prompts, and when the template asks for an answer."""

from __future__ import annotations

import pytest

from tests.layout import templates
from tests.layout.word_tokenizer import WordTokenizer
from tests.plan.planning import Prompts, column

USER, ANSWER, END = "<|im_start|> user", "<|im_start|> assistant", "<|im_end|>"
SCHEMA = """<system>Help.</system><user>Read. <module name="a">one</module>
    <union><module name="u">two</module><module name="v">three four</module></union></user>"""


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts(SCHEMA)


def test_a_role_around_text_is_new_text(prompts: Prompts) -> None:
    assert prompts.new_text("<a/><user>Why?</user>") == f"{USER} Why ? {END} {ANSWER}"
    owners = {(tokens.kind, tokens.owner) for tokens in prompts.plan("<user>Why?</user>").new}
    assert owners == {("text", "")}


def test_a_role_around_imports_is_text_before_and_behind_them() -> None:
    prompts = Prompts("gap <module name='g'>g g g</module><module name='a'>one</module>")
    assert prompts.new("<user><a/> Why?</user>") == {
        1: "<|im_start|>",
        2: "user",
        5: "Why",
        6: "?",
        7: END,
        8: "<|im_start|>",
        9: "assistant",
    }


def test_a_role_around_an_import_moves_it() -> None:
    prompts = Prompts("<module name='a'>one</module>")
    assert prompts.plan("<user><a/> Why?</user>").modules[-1].layout.start == 2
    new = "<|im_start|> user Why ? <|im_end|> <|im_start|> assistant"
    assert prompts.new_text("<user><a/> Why?</user>") == new


@pytest.mark.parametrize(
    ("prompt", "asks"),
    [
        ("<a/>", True),
        ("<a/><v/>", True),
        ("<a/> and", False),
        ("<a/><user>Why?</user>", True),
        ("<user>Why?</user> and", False),
        ("<user>Why?</user><assistant>So.</assistant>", False),
        ("<user>Why?</user><assistant>So.</assistant><user>Oh.</user>", True),
        ("<a/><system>Be brief.</system>", False),
        ("Be brief.", False),
    ],
)
def test_the_template_asks_for_an_answer_behind_a_user_message(
    prompts: Prompts, prompt: str, asks: bool
) -> None:
    assert prompts.new_text(prompt).endswith(ANSWER) == asks


@pytest.mark.parametrize(
    ("schema", "prompt", "asks"),
    [
        ("<user>One <module name='a'>two</module></user>", "<a/>", True),
        ("<user>One</user><module name='a'>two</module>", "<a/>", False),
        ("<user>One</user><module name='a'>two</module>", "One", False),
        ("<user>One</user> two", "<a/>", False),
        ("<module name='a'><user>One</user></module>", "<a/>", True),
        ("<module name='a'><user>One</user><assistant>Two</assistant></module>", "<a/>", False),
        ("<user>One</user><module name='a'><assistant>Two</assistant></module>", "<a/>", False),
        ("One <module name='a'>two</module>", "<a/>", False),
        ("One <module name='a'>two</module>", "<a/><user>Why?</user>", True),
    ],
)
def test_the_last_role_may_close_in_the_schema(schema: str, prompt: str, asks: bool) -> None:
    prompts = Prompts(schema + "<module name='a'>x</module>" * ("'a'" not in schema))
    assert prompts.new_text(prompt).endswith(ANSWER) == asks


def test_text_that_is_last_by_position_counts_not_by_order() -> None:
    prompts = Prompts("<module name='a'>1</module><module name='b'>2</module>")
    assert prompts.new_text("<b/><user>Why?</user><a/>").endswith(ANSWER)


def test_a_user_message_that_closes_with_no_text_of_its_own() -> None:
    bare = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    ask = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    prompts = Prompts(
        "<user>One <module name='a'>two</module></user>", tokenizer=WordTokenizer(bare + ask)
    )
    for prompt in ("<a/>", "<a/><user>Why</user>"):
        assert prompts.new_text(prompt).endswith("<|assistant|>")
    assert not prompts.new_text("<a/> and").endswith("<|assistant|>")


def test_stripped_roles_lose_white_space_at_their_ends() -> None:
    prompts = Prompts("One", tokenizer=WordTokenizer(templates.LLAMA3, bos="<s>"))
    prompts.plan("<user> Why? </user> and ")
    assert {"Why?", " and "} <= set(prompts.words.calls[-1])


def test_a_role_the_template_lacks() -> None:
    prompts = Prompts("One", tokenizer=WordTokenizer(templates.GEMMA, bos="<s>"))
    error = prompts.refused("<user>Hi</user><system>No</system>")
    assert error.message.startswith("the model's chat template has no `<system>` role")
    column(error, "<system>")


def test_system_first_where_the_template_wants_it() -> None:
    tokenizer = WordTokenizer(templates.LLAMA31, bos="<s>")
    prompt = "<system>Help.</system><user>Hi</user>"
    assert Prompts("One", tokenizer=tokenizer).plan(prompt).num_new_tokens
    prompts = Prompts("<user>One</user>", tokenizer=tokenizer)
    assert "only as the first role" in prompts.refused(prompt).message


def test_prompts_without_roles_need_no_template() -> None:
    prompts = Prompts("One <module name='a'>two</module>", tokenizer=WordTokenizer())
    assert prompts.new_text("<a/> three") == "three"
