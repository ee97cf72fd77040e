"""Chats whose marks are not read are served as they would be without them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.renderers.base import BaseRenderer

from tests.layout.templates import CHATML
from tests.layout.word_tokenizer import WordTokenizer
from tests.plan.planning import make_planner
from vllm_promptcache.entrypoints.anthropic_marks import TEXTS_FIELD, MarkedTexts
from vllm_promptcache.entrypoints.engine_request import PLAN_FIELD
from vllm_promptcache.entrypoints.front_end import FrontEnd
from vllm_promptcache.entrypoints.renderer import PromptModuleRenderer
from vllm_promptcache.entrypoints.request_options import RequestOptions, applied

DOCUMENT = {"type": "text", "text": "one two three", "module": True}
MESSAGES = [{"role": "user", "content": [DOCUMENT, {"type": "text", "text": "What?"}]}]


class Rendering(BaseRenderer):
    """Stands in for vLLM's renderer.

    Attributes:
        more: What a prompt has beside its text.
        fails_on_probes: Whether the template refuses texts that it does not know.
    """

    more: dict[str, Any]
    fails_on_probes = False

    def render_messages(self, messages: Any, params: Any) -> Any:
        texts = [part["text"] for message in messages for part in message["content"]]
        if self.fails_on_probes and "one two three" not in texts:
            raise ValueError("unknown text")
        return messages, {"prompt": "<s>" + "\n".join(texts) + "</s>", **self.more}


def renderer(max_model_len: int = 2000, **more: Any) -> Any:
    planner = make_planner(WordTokenizer(CHATML), max_model_len=max_model_len, block_size=4)
    config: Any = SimpleNamespace(
        cache_config=SimpleNamespace(num_gpu_blocks=None, block_size=4), additional_config={}
    )
    made: Any = object.__new__(type("Renderer", (PromptModuleRenderer, Rendering), {}))
    made.front_end, made.more = FrontEnd(planner, config), more
    return made


def request(**fields: Any) -> RequestOptions:
    extra = {name: fields.pop(name) for name in ("prompt_modules", TEXTS_FIELD) if name in fields}
    return RequestOptions.of(SimpleNamespace(model_extra=extra, **fields))


def test_marks_are_read() -> None:
    conversation, prompt = renderer().render_messages(MESSAGES, None)
    assert conversation == MESSAGES
    assert prompt[PLAN_FIELD].num_cached_tokens == 4
    assert prompt["prompt"] == "<s>one two three\nWhat?</s>"


@pytest.mark.parametrize(
    "made",
    [
        renderer(multi_modal_data={}),
        renderer(prompt=None, prompt_token_ids=[1, 2]),
        renderer(max_model_len=5),
    ],
    ids=["images", "tokens", "too long"],
)
def test_some_prompts_are_left_alone(made: Any) -> None:
    _, prompt = made.render_messages(MESSAGES, None)
    assert PLAN_FIELD not in prompt


def test_a_template_may_refuse_probes() -> None:
    made = renderer()
    made.fails_on_probes = True
    _, prompt = made.render_messages(MESSAGES, None)
    assert prompt == {"prompt": "<s>one two three\nWhat?</s>"}


@pytest.mark.parametrize(
    ("fields", "is_read"),
    [
        ({"prompt_logprobs": None, "truncate_prompt_tokens": None}, True),
        ({"use_beam_search": False, "add_special_tokens": False}, True),
        ({"prompt_modules": {"detail": True}}, True),
        ({"prompt_modules": {"marks": False}}, False),
        ({"prompt_logprobs": 0}, False),
        ({"prompt_logprobs": 2}, False),
        ({"truncate_prompt_tokens": 8}, False),
        ({"use_beam_search": True}, False),
        ({"add_special_tokens": True}, False),
    ],
)
def test_some_requests_go_without_modules(fields: dict[str, Any], is_read: bool) -> None:
    with applied(request(**fields)):
        _, prompt = renderer().render_messages(MESSAGES, None)
    assert (PLAN_FIELD in prompt) is is_read


def test_only_the_server_says_what_is_marked_wherever_it_stands() -> None:
    document = "one two three " * 40
    texts = [f"Read {document} well", "What?"]
    contents = [[{"type": "text", "text": text}] for text in texts]
    plain = [
        {"role": role, "content": content}
        for role, content in zip(("system", "user"), contents, strict=True)
    ]
    for marked, is_read in ((MarkedTexts([document]), True), ([document], False)):
        with applied(request(**{TEXTS_FIELD: marked})):
            _, prompt = renderer().render_messages(plain, None)
        assert (PLAN_FIELD in prompt) is is_read
