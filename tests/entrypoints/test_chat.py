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
from vllm_promptcache.pml import Repair, parse_prompt

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


def form(**fields: object) -> RequestOptions:
    return RequestOptions.of(SimpleNamespace(model_extra={"prompt_modules": fields}))


def test_a_prompt_without_markup() -> None:
    options = form(
        schema="s",
        imports=["a/b", "a/c", "d"],
        arguments={"a": {"x": '1 < "2"'}, "d": {"y": "&"}},
        text="so ",
    )
    assert options.prompt_modules is not None
    assert options.prompt_modules.to_pml("<b>") == (
        '<prompt schema="s" xml:space="preserve"><a x=\'1 &lt; "2"\'><b></b><c></c></a>'
        '<d y="&amp;"></d>so &lt;b&gt;</prompt>'
    )
    parse_prompt(options.prompt_modules.to_pml("<b>"))
    assert "<user>so x</user>" in options.prompt_modules.to_pml("x", as_user=True)
    with applied(options):
        chat = PMLChat.find([user("hello")])
        assert chat is not None
        assert chat.document == options.prompt_modules.to_pml("hello")
        for messages in ([], [user(DOCUMENT)], [{"role": "system", "content": "x"}]):
            with pytest.raises(PlanError, match="plain text"):
                PMLChat.find(messages)
    assert current_options() == RequestOptions()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema": "s", "importz": []}, "prompt_modules.importz: Extra inputs"),
        ({"schema": "s", "encode": "isolated"}, "prompt_modules.encode: Input should be 'exact'"),
        ({"schema": "s", "repair": '1"'}, "prompt_modules.repair: Value error, write `none`"),
        ({"schema": "s", "imports": ["a b"]}, "prompt_modules.imports.0: String should match"),
        ({"schema": 's"', "imports": []}, "prompt_modules.schema: String should match"),
        ({"schema": "s", "arguments": {"a": {"x y": "1"}}}, "prompt_modules.arguments.a"),
        ({"schema": "s", "imports": ["a/" * 64 + "a"]}, "prompt_modules.imports.0: String should"),
        ({"repair": "tail:1"}, "prompt_modules: Value error, imports, arguments, text, encode"),
        ({"imports": ["a"]}, "prompt_modules: Value error, imports, arguments, text, encode"),
    ],
)
def test_malformed_forms_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError) as error:
        form(**fields)
    assert error.value.message.startswith(message)


@pytest.mark.parametrize("field", [0, "", [], False, "x"])
def test_a_form_that_is_no_object_is_refused(field: object) -> None:
    with pytest.raises(PlanError, match="prompt_modules: Input should be"):
        RequestOptions.of(SimpleNamespace(model_extra={"prompt_modules": field}))


def test_deep_imports_cost_little() -> None:
    deep = "/".join(["a"] * 63)
    modules = PromptModules(
        schema="s",
        imports=[f"b{i}/{deep}" for i in range(4096)],
        arguments={f"b{i}": {"x": "1"} for i in range(4096)},
    )
    assert modules.to_pml("").count("<b") == 4096


def test_the_policy_of_a_prompt_without_markup() -> None:
    modules = PromptModules(schema="s", encode="exact", repair="tail:16")
    prompt = parse_prompt(modules.to_pml("x"))
    assert prompt.is_exact
    assert prompt.repair == Repair("tail", 16)


def test_a_pml_prompt_is_not_tokenized() -> None:
    request = TokenizeCompletionRequest(prompt=DOCUMENT)
    with applied(RequestOptions.of(request)), pytest.raises(PlanError, match="cannot be tokenized"):
        plan_if_pml(SimpleNamespace(), DOCUMENT)  # type: ignore[arg-type]


def test_arguments_of_modules_that_are_not_imported_are_refused() -> None:
    modules = PromptModules(schema="s", imports=["a"], arguments={"b": {"x": "1"}})
    with pytest.raises(PlanError, match="'b', which is not imported"):
        modules.to_pml("")
