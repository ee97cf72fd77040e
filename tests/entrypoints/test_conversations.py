"""The text of a conversation with PML is that of the same conversation in plain messages."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.entrypoints.conversations import Conversations, user
from tests.layout import templates
from vllm_promptcache.errors import ClientError, UnsupportedError

SYSTEM = ("system", "You are a clerk.")
TEXTS = {"a": "Doc A text.", "b": 'Doc <b> & "B".'}
MODULES = '<module name="a">Doc A text.</module><module name="b">Doc &lt;b> &amp; "B".</module>'
# All content in messages, or the modules and the prompt's text together in one.
CLOSED = f"<system>{SYSTEM[1]}</system><user>{MODULES}</user>"
OPEN = f"<system>{SYSTEM[1]}</system>{MODULES}"
SCHEMAS = {"closed": CLOSED, "user": f"<user>{MODULES}</user>", "open": OPEN, "bare": MODULES}
TOOLS: dict[str, Any] = {"tools": [{"name": "f", "description": "adds"}]}
GIVEN: list[dict[str, Any]] = [
    {},
    TOOLS,
    {"enable_thinking": False},
    {"reasoning_effort": "high"},
]
# Templates that write all conversations, and why the others do not write some.
WHOLE = ["CHATML", "QWEN", "REASONING", "LLAMA3", "LLAMA31", "PHI3", "VICUNA", "DATED"]
WHOLE += ["THINKING", "EFFORT"]
REASONS = {
    "MISTRAL": "alternate",
    "LLAMA2": "writes system text into the first user message",
    "GEMMA": "System role not supported",
    "TOOLS": "writes a system message before another one",
    "TOOLS_IN_USER": "depending on the messages around it",
    "RANDOM": "another text every few seconds",
}


def pml(imports: str, text: str, inline: str = "") -> dict[str, Any]:
    """A user message that imports modules, and may have one of its own."""
    inner = "".join(f"<{name}/>" for name in imports)
    inner += f"<module>{inline}</module>" if inline else ""
    return user(f'<prompt schema="s" xml:space="preserve">{inner}{text}</prompt>')


def plain(*messages: tuple[str, str]) -> list[dict[str, Any]]:
    """Messages in OpenAI's form."""
    return [{"role": role, "content": content} for role, content in messages]


@st.composite
def conversations(draw: st.DrawFn) -> tuple[str, list[dict[str, Any]], list[tuple[str, str]]]:
    """The kind of a schema, messages with PML, and the same conversation in plain messages."""
    kind = draw(st.sampled_from(sorted(SCHEMAS)))
    imports = draw(st.sampled_from(["a", "b", "ab"]))
    text = draw(st.sampled_from(["Why?", " Why? ", "\nWhat\t(so)?\n"]))
    inline = draw(st.sampled_from(["", "In line.", " In\nline. "]))
    system = [("system", text) for text in draw(st.sampled_from([[], ["Be kind."], ["A", "B"]]))]
    turns = draw(st.sampled_from([[], [("assistant", "So."), ("user", "Oh?")]]))
    documents = "".join(TEXTS[name] for name in imports)
    own = [("user", documents), ("user", inline + text)]
    if kind in ("open", "bare"):
        own = [("user", documents + inline + text)]
    if kind in ("open", "closed"):
        own = [SYSTEM, *own]
    messages = [*plain(*system), pml(imports, text, inline), *plain(*turns)]
    return kind, messages, [*system, *own, *turns]


@pytest.mark.parametrize("name", [*WHOLE, *REASONS])
@settings(max_examples=40, deadline=None)
@given(case=conversations(), kwargs=st.sampled_from(GIVEN))
def test_a_conversation_has_the_text_of_its_plain_messages_or_is_refused(
    name: str,
    case: tuple[str, list[dict[str, Any]], list[tuple[str, str]]],
    kwargs: dict[str, Any],
) -> None:
    kind, messages, expected = case
    refusal = ""
    try:
        talk = Conversations(getattr(templates, name), SCHEMAS[kind], kwargs=kwargs)
        text = talk.modular(*messages)
    except (ClientError, ValueError) as error:
        refusal = str(error)
    if refusal:
        assert "has no `<system>` role" in refusal or REASONS.get(name, "\0") in refusal, refusal
    else:
        assert text == talk.plain(*expected)


@pytest.mark.parametrize("name", [*WHOLE, *REASONS])
def test_every_template_serves_modules_and_text_in_one_message(name: str) -> None:
    talk = Conversations(getattr(templates, name), MODULES)
    if name == "RANDOM":
        with pytest.raises(UnsupportedError):
            talk.modular(pml("ab", "Why?"))
    else:
        expected = talk.plain(("user", TEXTS["a"] + TEXTS["b"] + "Why?"))
        assert talk.modular(pml("ab", "Why?")) == expected


@pytest.mark.parametrize("schema", [CLOSED, OPEN, MODULES])
@pytest.mark.parametrize("attributes", ["", 'encode="exact"', 'layout="compact"'])
def test_a_date_is_that_of_the_request(schema: str, attributes: str) -> None:
    talk = Conversations(templates.TIMED, schema, attributes)
    own = [("user", "Doc A text."), ("user", "Why?")] if schema == CLOSED else None
    expected = [*[SYSTEM] * (schema != MODULES), *(own or [("user", "Doc A text.Why?")])]
    texts = []
    for _ in range(3):
        texts.append(talk.modular(pml("a", "Why?")))
        assert texts[-1] == talk.plain(*expected)
        talk.tokenizer.now += timedelta(minutes=1)
    assert len(set(texts)) == 3


def test_a_date_in_a_completion_is_that_of_the_request() -> None:
    talk = Conversations(templates.TIMED, CLOSED)
    prompt = '<prompt schema="s"><a/><user>Why?</user></prompt>'
    first = talk.text(talk.planner.plan(prompt, reuse=False))
    assert "23:59" in first
    talk.tokenizer.now += timedelta(minutes=1)
    second = talk.text(talk.planner.plan(prompt, reuse=False))
    assert second == first.replace("23:59", "00:00")
    assert second == talk.plain(SYSTEM, ("user", "Doc A text."), ("user", "Why?"))


def test_modules_are_warmed_as_prompts_will_have_them() -> None:
    talk = Conversations(templates.TIMED, CLOSED)
    talk.tokenizer.now += timedelta(minutes=1)
    warmed = {m.layout.key for plan in talk.planner.warm_plans("s") for m in plan.modules}
    plan = talk.planner.plan('<prompt schema="s"><a/><user>Why?</user></prompt>')
    assert {planned.layout.key for planned in plan.modules} <= warmed


def test_the_same_surroundings_have_the_same_modules() -> None:
    talk = Conversations(templates.DATED, OPEN, kwargs=TOOLS)

    def keys(*messages: dict[str, Any]) -> list[bytes]:
        return [planned.layout.key for planned in talk.plan(*messages).modules]

    first = keys(pml("a", "Why?"))
    assert first == keys(pml("a", "And?"), *plain(("assistant", "So."), ("user", "Oh?")))
    assert first != keys(*plain(("system", "Be kind.")), pml("a", "Why?"))
    talk.tokenizer.now += timedelta(days=1)
    assert first != keys(pml("a", "Why?"))
    talk = Conversations(templates.TOOLS, OPEN)
    first = keys(pml("a", "Why?"))
    talk.kwargs = TOOLS
    assert first != keys(pml("a", "Why?"))


def test_a_clock_with_seconds_is_refused() -> None:
    talk = Conversations(templates.TIMED.replace("%M", "%M:%S"), OPEN)

    def talk_for_a_while() -> None:
        for _ in range(9):
            talk.modular(pml("a", "Why?"))
            talk.tokenizer.now += timedelta(seconds=1)

    with pytest.raises(UnsupportedError, match="another text every few seconds"):
        talk_for_a_while()


@pytest.mark.parametrize("position", range(3))
def test_text_parts_are_joined_as_the_server_joins_them(position: int) -> None:
    talk = Conversations(templates.CHATML, MODULES)
    others = ["Read this:", "Then that."]
    parts = [*others[:position], pml("a", "Why?")["content"], *others[position:]]
    shown = [*others[:position], "Doc A text.Why?", *others[position:]]
    message = user([{"type": "text", "text": text} for text in parts])
    assert talk.modular(message) == talk.plain(("user", "\n".join(shown)))


def test_an_explicit_user_message_is_the_one_that_the_modules_are_in() -> None:
    talk = Conversations(templates.MISTRAL, MODULES)
    roles = "<user>Why?</user><assistant>So.</assistant><user>Oh?</user>"
    expected = ("user", "Doc A text.Why?"), ("assistant", "So."), ("user", "Oh?")
    assert talk.modular(pml("a", roles)) == talk.plain(*expected)


@pytest.mark.parametrize(
    ("schema", "content", "message"),
    [
        (f"Text <user>x</user>{MODULES}", "<a/>Why?", "before or between its messages"),
        (MODULES, "<a/><user>Why?</user><b/>", "behind the user's message"),
        (SCHEMAS["user"], "<a/><user>x</user><b/>", "a message inside another one"),
        (f"{SCHEMAS['user']}<module name='c'><user>c</user></module>", "x<c/>", "outside of"),
    ],
)
def test_what_is_no_sequence_of_messages_is_refused(
    schema: str, content: str, message: str
) -> None:
    talk = Conversations(templates.CHATML, schema)
    with pytest.raises(ClientError, match=message):
        talk.modular(user(f'<prompt schema="s">{content}</prompt>'))


def test_developer_messages_that_are_no_system_messages_are_refused() -> None:
    developer = {"role": "developer", "content": "Be kind."}
    with pytest.raises(UnsupportedError, match="developer messages of their own"):
        Conversations(templates.CHATML, MODULES).modular(developer, pml("a", "Why?"))
    talk = Conversations(templates.EFFORT, MODULES)
    expected = talk.plain(("developer", "Be kind."), ("user", "Doc A text.Why?"))
    assert talk.modular(developer, pml("a", "Why?")) == expected


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ('<user><module name="a">one </module></user>', "a"),
        ('<user>x<union><module name="b">b </module></union></user>', "b"),
        ('<user><module name="a"> one</module>x</user>', "a"),
        ('<user>x<module name="a">one </module>y</user>', None),
        ('<user><module name="a">one</module></user>', None),
    ],
)
def test_a_module_that_a_template_would_trim_is_told(
    schema: str, name: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    Conversations(templates.CHATML, schema)
    assert not caplog.records
    Conversations(templates.LLAMA3, schema)
    assert [f"not module {name}," in caplog.text] == [name is not None]
