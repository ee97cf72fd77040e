"""Which chat templates can write another text by themselves, and what that spares."""

from __future__ import annotations

from typing import Any

import pytest

from tests.layout import templates
from tests.layout.test_tokenizer import hf_tokenizer
from tests.layout.word_tokenizer import WordTokenizer
from vllm_promptcache.layout import LayoutTokenizer
from vllm_promptcache.layout.template_source import can_change

SETTLED = {
    "chatml": templates.CHATML,
    "qwen": templates.QWEN,
    "llama3": templates.LLAMA3,
    "phi3": templates.PHI3,
    "tools": templates.TOOLS,
    # Undefined where the request does not give it.
    "thinking": templates.THINKING,
    "effort": templates.EFFORT,
    "macro": "{% macro m(x) %}{{ x }}{% endmacro %}{% for a in messages %}{{ m(a.content) }}"
    "{% endfor %}",
    "no names": "always",
}
RESTLESS = {
    "date": templates.DATED,
    "minute": templates.TIMED,
    "random": templates.RANDOM,
    "random by name": "{{ range(9) | list | map('random') | list }}",
    "made-up text": "{{ lipsum() }}",
    "another name for the clock": "{% set now = strftime_now %}{{ now('%d') }}",
    "perhaps a clock": "{% if strftime_now is defined %}{{ strftime_now('%d') }}{% endif %}",
}


def hf(template: Any) -> Any:
    tokenizer = hf_tokenizer(templates.CHATML, adds_bos=False, unk=None)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", SETTLED)
def test_what_only_sees_messages_stays(name: str) -> None:
    assert not can_change(SETTLED[name], hf(SETTLED[name]))


@pytest.mark.parametrize("name", RESTLESS)
def test_what_can_tell_the_time_may_change(name: str) -> None:
    assert can_change(RESTLESS[name], hf(RESTLESS[name]))


@pytest.mark.parametrize(
    "template", [None, "{% broken", {"default": templates.CHATML, "tool_use": templates.TOOLS}]
)
def test_what_is_not_known_may_change(template: Any) -> None:
    assert can_change(template, hf(template))


def test_what_is_not_written_in_jinja_may_change() -> None:
    """Tokenizers of vLLM's own write messages in Python, whatever template they name."""

    class Own(WordTokenizer):
        def apply_chat_template(self, conversation: Any, **kwargs: Any) -> str:
            return "<user>text"

    assert can_change(templates.CHATML, Own(templates.CHATML))


def test_a_template_that_stays_is_not_rendered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    words, calls = WordTokenizer(templates.CHATML), []
    render = words.apply_chat_template

    def watch(*args: Any, **kwargs: Any) -> str:
        calls.append(kwargs)
        return render(*args, **kwargs)

    monkeypatch.setattr(words, "apply_chat_template", watch)
    tokenizer = LayoutTokenizer(words)
    first = tokenizer.now()
    num_calls = len(calls)
    assert tokenizer.now() is first
    assert len(calls) == num_calls
    words.chat_template = templates.CHATML.replace("Be nice.", "Be brief.")
    assert "Be brief." in tokenizer.now().roles.preamble
