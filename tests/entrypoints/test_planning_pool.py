"""Prompts are planned beside the event loop, whatever their length."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.renderers.base import BaseRenderer
from vllm.renderers.params import ChatParams

from tests.layout.templates import CHATML
from tests.layout.word_tokenizer import WordTokenizer
from tests.plan.planning import Prompts
from vllm_promptcache.entrypoints.engine_request import PLAN_FIELD
from vllm_promptcache.entrypoints.front_end import FrontEnd
from vllm_promptcache.entrypoints.renderer import PromptModuleRenderer
from vllm_promptcache.entrypoints.request_options import (
    PromptModules,
    RequestOptions,
    applied,
    current_options,
)
from vllm_promptcache.errors import PMLError

DOCUMENT = '<prompt schema="s"><a/> end</prompt>'
PLAIN = {"prompt_token_ids": [1]}


class PlainRenderer(BaseRenderer):
    """vLLM's part, as far as the mix-in calls it."""

    def __init__(self, config: Any, tokenizer: Any) -> None:
        self.threads: list[threading.Thread] = []

    def render_messages(self, messages: Any, params: Any) -> Any:
        words = WordTokenizer(CHATML)
        kwargs = params.chat_template_kwargs
        kwargs = {key: kwargs[key] for key in kwargs if key != "continue_final_message"}
        return messages, {"prompt": words.apply_chat_template(messages, tokenize=False, **kwargs)}

    async def render_messages_async(self, messages: Any, params: Any) -> Any:
        return PlainRenderer.render_messages(self, messages, params)

    async def _tokenize_singleton_prompt_async(self, prompt: Any, params: Any) -> Any:
        self.threads.append(threading.current_thread())
        return PLAIN


class Renderer(PromptModuleRenderer, PlainRenderer):
    """As `make_renderer` puts it together."""


@pytest.fixture
def renderer(monkeypatch: pytest.MonkeyPatch) -> Renderer:
    prompts = Prompts('<module name="a">a1 a2 a3 a4 a5</module>')
    config: Any = SimpleNamespace(cache_config=SimpleNamespace(num_gpu_blocks=None, block_size=4))
    front_end = FrontEnd(prompts.planner, config)
    monkeypatch.setattr(FrontEnd, "create", lambda *_: front_end)
    return Renderer(None, None)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[threading.Thread, str | None]]:
    """Where each prompt is planned, and for which tenant."""
    seen: list[tuple[threading.Thread, str | None]] = []
    plan = FrontEnd.plan

    def watch(front_end: FrontEnd, *args: Any, **kwargs: Any) -> Any:
        seen.append((threading.current_thread(), current_options().cache_salt))
        return plan(front_end, *args, **kwargs)

    monkeypatch.setattr(FrontEnd, "plan", watch)
    return seen


def completion(renderer: Renderer, prompt: dict[str, Any]) -> Coroutine[Any, Any, Any]:
    return renderer._tokenize_singleton_prompt_async(prompt, SimpleNamespace())


async def chat(renderer: Renderer, text: str) -> Any:
    params = ChatParams(chat_template_kwargs={"add_generation_prompt": True})
    _, prompt = await renderer.render_messages_async([{"role": "user", "content": text}], params)
    return prompt


@pytest.mark.parametrize(
    "ask",
    [lambda renderer: completion(renderer, {"prompt": DOCUMENT}), lambda r: chat(r, DOCUMENT)],
)
def test_a_short_prompt_is_planned_in_a_thread_with_what_its_request_says(
    renderer: Renderer,
    watched: list[tuple[threading.Thread, str | None]],
    ask: Callable[[Renderer], Coroutine[Any, Any, Any]],
) -> None:
    with applied(RequestOptions(cache_salt="tenant")):
        planned = asyncio.run(ask(renderer))
    assert PLAN_FIELD in planned
    ((thread, salt),) = watched
    assert thread is not threading.current_thread()
    assert salt == "tenant"


@pytest.mark.parametrize(
    "ask", [lambda renderer: completion(renderer, {"prompt": "end"}), lambda r: chat(r, "end")]
)
def test_a_prompt_without_markup_is_made_and_planned_in_a_thread(
    renderer: Renderer,
    watched: list[tuple[threading.Thread, str | None]],
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[Renderer], Coroutine[Any, Any, Any]],
) -> None:
    threads, to_prompt = [], PromptModules.to_prompt

    def watch(form: PromptModules, *args: Any, **kwargs: Any) -> Any:
        threads.append(threading.current_thread())
        return to_prompt(form, *args, **kwargs)

    monkeypatch.setattr(PromptModules, "to_prompt", watch)
    form = PromptModules.model_validate({"schema": "s", "imports": ["a"]})
    with applied(RequestOptions(prompt_modules=form)):
        assert PLAN_FIELD in asyncio.run(ask(renderer))
    threads += [thread for thread, _ in watched]
    assert len(threads) == 2
    assert threading.current_thread() not in threads


@pytest.mark.parametrize("prompt", [{"prompt": "text"}, {"prompt_token_ids": [1, 2]}])
def test_other_prompts_stay_in_the_event_loop(renderer: Renderer, prompt: dict[str, Any]) -> None:
    assert asyncio.run(completion(renderer, prompt)) is PLAIN
    assert renderer.threads == [threading.current_thread()]


def test_errors_are_those_of_planning(renderer: Renderer) -> None:
    with pytest.raises(PMLError, match="there is no module `b`"):
        asyncio.run(completion(renderer, {"prompt": '<prompt schema="s"><b/></prompt>'}))


def test_a_prompt_overtakes_a_slow_one(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    is_over, plan = threading.Event(), FrontEnd.plan

    def slow(front_end: FrontEnd, text: str, **kwargs: Any) -> Any:
        if "slow" in text:
            assert is_over.wait(10), "the event loop stood still"
        return plan(front_end, text, **kwargs)

    monkeypatch.setattr(FrontEnd, "plan", slow)

    async def both() -> None:
        first = asyncio.create_task(
            completion(renderer, {"prompt": '<prompt schema="s"><a/> slow</prompt>'})
        )
        await asyncio.sleep(0)  # It begins.
        await completion(renderer, {"prompt": DOCUMENT})
        assert not first.done()
        is_over.set()
        assert PLAN_FIELD in await first

    asyncio.run(both())
