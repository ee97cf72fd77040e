"""PML in conversations, and prompts without markup."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from vllm.entrypoints.serve.tokenize.protocol import TokenizeCompletionRequest

from vllm_promptcache.entrypoints.chat import PMLChat
from vllm_promptcache.entrypoints.renderer import plan_if_pml
from vllm_promptcache.entrypoints.request_options import (
    PromptModules,
    RequestOptions,
    applied,
    current_options,
)
from vllm_promptcache.errors import PlanError, UnsupportedError
from vllm_promptcache.layout.roles import ChatRoles, RoleWrapper
from vllm_promptcache.plan.chat import Conversation, close_with_user
from vllm_promptcache.pml import parse_prompt

DOCUMENT = '<prompt schema="s"><a/> text</prompt>'
ROLES = ChatRoles(
    wrappers={"user": RoleWrapper("[u]", "[/u]", strips_content=False)},
    missing={},
    preamble="[s]default[/s]",
    generation_prompt="[a]",
    starts_with_bos=True,
    system_first_only=True,
)


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize("content", [DOCUMENT, [{"type": "text", "text": DOCUMENT}]])
def test_the_first_message_may_be_a_document(content: object) -> None:
    chat = PMLChat.find([user(content), {"role": "assistant", "content": "x"}])
    assert chat is not None
    assert chat.document == DOCUMENT
    assert chat.messages[0]["content"] not in DOCUMENT
    assert chat.messages[1:] == [{"role": "assistant", "content": "x"}]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [user("hello")],
        [user(f"what is {DOCUMENT}?")],
        [{"role": "assistant", "content": DOCUMENT}],
        [user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])],
        [user(None)],
    ],
)
def test_other_conversations_are_left_alone(messages: list[dict[str, object]]) -> None:
    assert PMLChat.find(messages) is None


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "x"}, user(DOCUMENT)],
        [user("x"), user(DOCUMENT)],
        [user(DOCUMENT), user(DOCUMENT)],
    ],
)
def test_a_document_elsewhere_is_refused(messages: list[dict[str, object]]) -> None:
    with pytest.raises(PlanError, match="must be the first message"):
        PMLChat.find(messages)


@pytest.mark.parametrize(
    ("head", "tail", "tools", "turns"),
    [
        ("<bos>[s]default[/s][u]", "[/u][a]", "", "[a]"),
        ("<bos>[s]tools[/s][u]", "[/u][a]", "[s]tools[/s]", "[a]"),
        ("<bos>[s]default[/s][u]", "[/u][a]x[/a][u]y[/u][a]", "", "[a]x[/a][u]y[/u][a]"),
    ],
)
def test_the_template_is_read_around_the_document(
    head: str, tail: str, tools: str, turns: str
) -> None:
    chat = PMLChat.find([user(DOCUMENT)])
    assert chat is not None
    tokenizer = SimpleNamespace(roles=ROLES, bos_text="<bos>")
    rendered = head + chat.messages[0]["content"] + tail
    assert chat.read(rendered, tokenizer) == Conversation(tools, turns)


@pytest.mark.parametrize("head", ["<bos>[u]tools: ", "<bos>[x]"])
def test_a_message_that_is_written_otherwise_is_refused(head: str) -> None:
    chat = PMLChat.find([user(DOCUMENT)])
    assert chat is not None
    tokenizer = SimpleNamespace(roles=ROLES, bos_text="<bos>")
    for rendered in (head + chat.messages[0]["content"] + "[/u][a]", head, [1, 2]):
        with pytest.raises(UnsupportedError, match="in a way of its own"):
            chat.read(rendered, tokenizer)


def test_bare_text_at_the_end_is_the_users() -> None:
    def closed(content: str) -> list[str]:
        prompt = close_with_user(parse_prompt(f'<prompt schema="s">{content}</prompt>'))
        return [type(child).__name__ for child in prompt.children]

    assert closed("<a/> x") == ["Import", "Role"]
    assert closed("x <a/> y") == ["Text", "Import", "Role"]
    assert closed("<a/><user>x</user>") == ["Import", "Role"]
    assert closed("<a/>") == ["Import"]


def test_a_prompt_without_markup_takes_the_first_message() -> None:
    modules = PromptModules(schema="s", imports=["a"])
    with applied(RequestOptions(prompt_modules=modules)):
        chat = PMLChat.find([user("hello")])
        assert chat is not None
        assert (chat.document, chat.text) == (modules.to_prompt("hello"), "hello")
        for messages in ([], [user(DOCUMENT)], [{"role": "system", "content": "x"}]):
            with pytest.raises(PlanError, match="plain text"):
                PMLChat.find(messages)
    assert current_options() == RequestOptions()


def test_a_pml_prompt_is_not_tokenized() -> None:
    request = TokenizeCompletionRequest(prompt=DOCUMENT)
    with applied(RequestOptions.of(request)), pytest.raises(PlanError, match="cannot be tokenized"):
        plan_if_pml(SimpleNamespace(), DOCUMENT)  # type: ignore[arg-type]
