"""Modules in the messages of chats, with any chat template."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from tests.generators import random_chat
from tests.layout import templates
from tests.layout.word_tokenizer import WordTokenizer
from tests.plan.planning import make_planner
from vllm_promptcache.entrypoints.marked_chat import MarkedChat
from vllm_promptcache.entrypoints.marks import MarkReader, Spot
from vllm_promptcache.errors import PMLError, UnsupportedError
from vllm_promptcache.plan.written import WrittenText
from vllm_promptcache.pml import FieldLocation, Inline, prompt_kind

TEMPLATES = {
    name: value
    for name, value in vars(templates).items()
    if isinstance(value, str) and name.isupper() and "message" in value and "strftime" not in value
}
READER = MarkReader(prompt_kind, reads_marks=True)
EPHEMERAL = {"cache_control": {"type": "ephemeral"}}
OWN = {"module": True}
LONG = "A document of some length. " * 10


def part(text: str, **marks: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **marks}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def render(tokenizer: WordTokenizer, messages: list[Any]) -> str:
    """As a server does, which joins the parts of a message."""
    flat = [
        {**m, "content": m["content"] if isinstance(m["content"], str) else _joined(m["content"])}
        for m in messages
    ]
    return tokenizer.apply_chat_template(flat, tokenize=False, add_generation_prompt=True)


def _joined(parts: list[Any]) -> str:
    return "\n".join(p if isinstance(p, str) else p["text"] for p in parts)


def written(messages: list[Any], template: str = templates.CHATML) -> WrittenText:
    tokenizer = WordTokenizer(template, bos="<s>")
    chat = MarkedChat.of(messages, READER)
    return chat.written(render(tokenizer, chat.messages), render(tokenizer, chat.probed))


def modules(text: WrittenText) -> list[str]:
    return [part.text for part in text.parts if isinstance(part, Inline)]


@pytest.mark.parametrize("mark", [EPHEMERAL, {"prompt_cache_breakpoint": {}}, {"module": True}])
def test_marked_parts_are_modules(mark: dict[str, Any]) -> None:
    one, two = f"One. {LONG}", f"Two. {LONG}"
    messages = [user(part(one, **mark), part(two, **mark), part("What?"))]
    assert READER.has_modules(messages)
    found = written(messages)
    assert modules(found) == [f"{one}\n", f"{two}\n"]
    assert {p.role for p in found.parts if isinstance(p, Inline)} == {"user"}


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user", "content": "hello"}],
        [{"role": "user", "content": None}],
        [{"role": "assistant", "tool_calls": []}],
        [user(part("a"), part("b", module=False, cache_control=None))],
        [user({"type": "image_url", "image_url": {"url": "x"}, **EPHEMERAL})],
        [user(part("", **EPHEMERAL))],
        [user('<prompt schema="s"><a/></prompt>')],
    ],
)
def test_other_conversations_have_none(messages: list[Any]) -> None:
    assert not READER.has_modules(messages)
    assert not MarkReader(prompt_kind, reads_marks=False).has_modules(messages)


def test_marks_may_be_off_and_pml_is_read_all_the_same() -> None:
    reader = MarkReader(prompt_kind, reads_marks=False)
    assert not reader.has_modules([user(part("a", **EPHEMERAL))])
    assert reader.has_modules([user("<prompt><module>a</module></prompt>")])


def test_pml_may_stand_in_any_message() -> None:
    pml = "<prompt>Read <module>one &amp; two</module> well.</prompt>"
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": pml},
        {"role": "tool", "content": pml},
    ]
    found = written(messages)
    assert modules(found) == ["one & two"] * 2
    assert found.text.count("Read one & two well.") == 2
    assert found.beginning == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"


def test_pml_in_a_message_has_no_roles_and_no_imports() -> None:
    for children in ("<user><module>a</module></user>", "<module>a</module><b/>"):
        with pytest.raises(PMLError, match="can have text and modules only") as caught:
            MarkedChat.of([user(f"<prompt>{children}</prompt>")], READER)
        assert caught.value.column > 1


def test_what_it_begins_with_is_the_systems() -> None:
    system = {"role": "system", "content": [part("Rules.", **OWN), part("More.", **OWN)]}
    found = written([system, user(part("Doc.", **OWN), part("What?"))])
    assert found.beginning == "<|im_start|>system\nRules."
    assert modules(found) == ["More.", "Doc.\n"]
    assert [p.role for p in found.parts if isinstance(p, Inline)] == ["system", "user"]
    # A user's own text is in no module that others may have.
    found = written([user(part("My secret."), part("Doc.", **OWN))])
    assert "My secret." not in found.beginning
    assert modules(found) == ["Doc."]


@pytest.mark.parametrize("mark", [EPHEMERAL, OWN])
def test_marks_of_hosted_apis_make_no_module_of_what_was_said(mark: dict[str, Any]) -> None:
    """Clients mark the end of a conversation, so that it is cached up to there."""
    question, answer = f"Who? {LONG}", f"He. {LONG}"
    messages = [
        user(part(question, **mark)),
        {"role": "assistant", "content": [part(answer, **mark), part(answer, **mark)]},
        {"role": "tool", "content": [part(LONG, **mark)]},
        user(part("short", **mark), part("Why?")),
        {"role": "tool", "content": [part(LONG, **mark)]},
    ]
    chat = MarkedChat.of(messages, READER)
    texts = [place.text for place in chat.places if isinstance(place, Inline)]
    if mark == OWN:
        assert texts == [question, answer, answer, LONG, "short", LONG]
    else:
        assert texts == [LONG]
    assert not MarkedChat.of(messages[:1], READER).has_modules or mark == OWN


def test_texts_that_are_marked_wherever_a_document_may_stand() -> None:
    one = f"One {LONG}"
    two = f"{one} Two."
    reader = MarkReader(prompt_kind, reads_marks=True, texts=frozenset((one, two, "short")))

    def cut(text: str, role: str = "system", *, is_last: bool = False) -> list[str]:
        spot = Spot(role, True, is_last)
        nodes = reader.nodes(text, text, "user", spot, FieldLocation("here"))
        assert "".join(node.text for node in nodes) == text
        return [node.text for node in nodes if isinstance(node, Inline)]

    assert cut(one) == [one]
    assert cut(f"Rules. {two} Three, {one} short") == [two, one]
    assert cut(f"{one}{two}{one} and") == [one, two, one]
    assert cut("none") == cut(one, "assistant") == cut(one, "user") == []
    assert cut(one, is_last=True) == []
    assert reader.has_modules([])


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_the_templates(name: str) -> None:
    """Whatever it does to messages; or the modules are not read."""
    num_read = 0
    for seed in range(40):
        messages, tokenizer = random_chat(Random(seed)), WordTokenizer(TEMPLATES[name], bos="<s>")
        if not READER.has_modules(messages):
            continue
        chat = MarkedChat.of(messages, READER)
        try:
            text = render(tokenizer, messages)
            found = chat.written(text, render(tokenizer, chat.probed))
        except (UnsupportedError, ValueError):
            continue
        num_read += len(modules(found))
        assert found.text == text
        planner = make_planner(tokenizer, max_model_len=4000, block_size=4)
        plan = planner.plan_written(found)
        assert plan.prompt_token_ids == tokenizer.ids(text)
        num_tokens = sum(len(tokenizer.ids(module)) for module in modules(found))
        assert plan.num_cached_tokens >= num_tokens
    assert num_read or name in ("SHOUTING", "ESCAPING", "LAST_ONLY")
