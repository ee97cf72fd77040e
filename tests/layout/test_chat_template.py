"""Chat templates of many kinds are taken apart or refused."""

from __future__ import annotations

import pytest

from tests.layout import templates
from tests.layout.word_tokenizer import WordTokenizer
from vllm_promptcache.errors import UnsupportedError
from vllm_promptcache.layout import ChatRoles, LayoutTokenizer, RoleWrapper

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"


def roles_of(template: str | None, bos: str = "<s>", eos: str = "</s>") -> ChatRoles:
    return LayoutTokenizer(WordTokenizer(template, bos=bos, eos=eos)).roles


def joined(roles: ChatRoles, *messages: tuple[str, str]) -> str:
    preamble = "" if messages[0][0] == SYSTEM else roles.preamble
    wrapped = [
        roles.wrappers[role].prefix + content + roles.wrappers[role].suffix
        for role, content in messages
    ]
    return preamble + "".join(wrapped) + roles.generation_prompt


@pytest.mark.parametrize(
    ("template", "bos", "has_system"),
    [
        (templates.CHATML, "<s>", True),
        (templates.CHATML, "<|im_start|>", True),
        (templates.QWEN, "<s>", True),
        (templates.REASONING, "<s>", True),
        (templates.LLAMA3, "<s>", True),
        (templates.LLAMA31, "<s>", True),
        (templates.MISTRAL, "<s>", False),
        (templates.LLAMA2, "<s>", False),
        (templates.GEMMA, "<s>", False),
        (templates.PHI3, "<s>", True),
        (templates.VICUNA, "<s>", True),
    ],
)
def test_parts_give_what_the_template_gives(template: str, bos: str, has_system: bool) -> None:
    tokenizer = WordTokenizer(template, bos=bos)
    roles = LayoutTokenizer(tokenizer).roles
    talk = [(USER, "Hi!"), (ASSISTANT, "Hello."), (USER, "Who {{are}} you?")]
    for messages in (talk, talk[:1], *([(SYSTEM, "Be brief."), *talk],) * has_system):
        conversation = [{"role": role, "content": content} for role, content in messages]
        rendered = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True
        )
        assert rendered == (bos if roles.starts_with_bos else "") + joined(roles, *messages)
    assert (SYSTEM in roles.wrappers) == has_system == (SYSTEM not in roles.missing)


def test_chatml_with_default_system_message() -> None:
    roles = roles_of(templates.CHATML)
    assert roles.preamble == "<|im_start|>system\nBe nice.<|im_end|>\n"
    assert roles.wrappers[USER] == RoleWrapper("<|im_start|>user\n", "<|im_end|>\n", False)
    assert roles.generation_prompt == "<|im_start|>assistant\n"
    assert not roles.starts_with_bos
    assert not roles.system_first_only


def test_token_that_begins_every_message_is_no_bos() -> None:
    assert roles_of(templates.CHATML, bos="<|im_start|>") == roles_of(templates.CHATML)


def test_stripped_contents_are_noticed() -> None:
    for template in (templates.LLAMA3, templates.GEMMA):
        assert all(wrapper.strips_content for wrapper in roles_of(template).wrappers.values())
    assert not any(wrapper.strips_content for wrapper in roles_of(templates.QWEN).wrappers.values())


def test_bos_is_no_part_of_a_wrapper() -> None:
    roles = roles_of(templates.LLAMA3)
    assert roles.starts_with_bos
    assert roles.preamble == ""
    assert roles.wrappers[SYSTEM].prefix == "<|start|>system<|end|>\n\n"


def test_system_message_that_is_special_at_the_start() -> None:
    roles = roles_of(templates.LLAMA31)
    assert roles.preamble == "<|start|>system<|end|>\n\nToday: 1 May\n\n<|eot|>"
    assert roles.wrappers[SYSTEM].prefix == "<|start|>system<|end|>\n\nToday: 1 May\n\n"
    assert roles.system_first_only


def test_ending_without_generation_prompt_is_left_out() -> None:
    assert roles_of(templates.PHI3).wrappers[USER] == RoleWrapper("<|user|>\n", "<|end|>\n", False)


def test_answers_in_the_middle_count_for_reasoning_models() -> None:
    assert roles_of(templates.REASONING).wrappers[ASSISTANT].prefix == "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (templates.GEMMA, "it does not render a plain conversation (System role not supported)"),
        (templates.LLAMA2, "it writes system text into the first user message"),
    ],
)
def test_missing_system_role_has_a_reason(template: str, reason: str) -> None:
    roles = roles_of(template)
    assert set(roles.wrappers) == {USER, ASSISTANT}
    assert roles.missing == {SYSTEM: reason}


@pytest.mark.parametrize(
    ("template", "feature"),
    [
        (None, "does not render a plain conversation (tokenizer.chat_template is not set)"),
        ("{{ raise_exception('No chat') }}", "does not render a plain conversation (No chat)"),
        ("{{ messages[0].parts[0].text }}", "does not render a plain conversation"),
        (templates.SHOUTING, "changes or drops the content of messages"),
        (templates.ESCAPING, "changes or drops the content of messages"),
        (templates.LAST_ONLY, "changes or drops the content of messages"),
        (templates.ONE_SIDED, "changes white space within messages or at one end only"),
        (templates.NUMBERED, "writes a message differently depending on the messages around it"),
        (templates.COUNTING, "asks for the next message differently"),
    ],
)
def test_other_templates_are_refused(template: str | None, feature: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        roles_of(template)
    expected = f"the model's chat template cannot be used for roles: it {feature}"
    assert caught.value.message.startswith(expected)
    assert caught.value.hint == "leave out `<system>`, `<user>` and `<assistant>`"
