"""PML in conversations, and prompts without markup."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from vllm.entrypoints.serve.tokenize.protocol import TokenizeCompletionRequest

from vllm_promptcache.entrypoints.chat import PMLChat
from vllm_promptcache.entrypoints.engine_request import plan_if_pml
from vllm_promptcache.entrypoints.request_options import (
    PromptModules,
    RequestOptions,
    applied,
    current_options,
)
from vllm_promptcache.errors import PlanError
from vllm_promptcache.pml import is_prompt

DOCUMENT = '<prompt schema="s"><a/> text</prompt>'


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize("content", [DOCUMENT, [{"type": "text", "text": DOCUMENT}]])
def test_the_first_user_message_may_be_a_document(content: object) -> None:
    turns = [{"role": "assistant", "content": "x"}]
    for before in ([], [{"role": "system", "content": "y"}]):
        chat = PMLChat.find([*before, user(content), *turns])
        assert chat is not None
        assert chat.document == DOCUMENT
        assert chat.messages == [*before, user("prompt"), *turns]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [user("hello")],
        [user(f"what is {DOCUMENT}?")],
        [{"role": "assistant", "content": DOCUMENT}],
        [user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])],
        [user("hello"), {"role": "assistant", "content": DOCUMENT}],
        [user("hello"), {"role": "tool", "content": DOCUMENT}],
        [user(None)],
    ],
)
def test_other_conversations_are_left_alone(messages: list[dict[str, object]]) -> None:
    assert PMLChat.find(messages) is None


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "system", "content": DOCUMENT}, user("x")], "messages.0.: a PML prompt cannot"),
        ([{"role": "developer", "content": DOCUMENT}], "cannot stand in a system message"),
        ([user("x"), user(DOCUMENT)], "messages.1.: one PML prompt"),
        ([user("x"), user([{"type": "text", "text": DOCUMENT}])], "messages.1.: one PML prompt"),
        ([user(DOCUMENT), user(DOCUMENT)], "messages.1.: one PML prompt"),
        ([user([DOCUMENT, DOCUMENT])], "messages.0.: one PML prompt"),
        ([user([DOCUMENT, {"type": "image_url"}])], "parts of text only"),
        ([{"role": "assistant", "content": "x"}, user(DOCUMENT)], "messages.1.: one PML prompt"),
    ],
)
def test_a_document_elsewhere_is_refused(messages: list[dict[str, object]], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        PMLChat.find(messages)


def test_a_prompt_without_markup_takes_the_first_user_message() -> None:
    modules = PromptModules(schema="s", imports=["a"])
    chat = PMLChat.find([user("hello")], modules)
    assert chat is not None
    assert (chat.document, chat.text) == (modules, "hello")
    assert (chat.texts, chat.part) == (["hello"], -1)
    for messages in ([], [user(DOCUMENT)], [{"role": "system", "content": "x"}]):
        with pytest.raises(PlanError, match="plain text"):
            PMLChat.find(messages, modules)


def test_options_are_those_of_what_is_rendered_inside() -> None:
    options = RequestOptions(prompt_modules=PromptModules(schema="s"))
    with applied(options):
        assert current_options() is options
    assert current_options() == RequestOptions()


def test_a_pml_prompt_is_not_tokenized() -> None:
    request = TokenizeCompletionRequest(prompt=DOCUMENT)
    with applied(RequestOptions.of(request)), pytest.raises(PlanError, match="cannot be tokenized"):
        plan_if_pml(SimpleNamespace(is_pml=is_prompt), DOCUMENT)  # type: ignore[arg-type]
