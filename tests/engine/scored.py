"""Answers of a live server with their log-probabilities, and the plans of their prompts.

A server does not give out plans of conversations, so all plans are made here, by a planner that
knows the same schemas.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from openai import OpenAI
from transformers import AutoTokenizer
from vllm.renderers.params import ChatParams

from tests.engine.server import MAX_MODEL_LEN, MODEL_NAME
from tests.generators import Schema
from tests.plan.planning import make_planner
from tests.reference import Reference
from tests.reference.compare import Difference
from vllm_promptcache.config import PromptModulesConfig
from vllm_promptcache.engine import CPU_BLOCK_SIZE
from vllm_promptcache.entrypoints.chat import PMLChat, RenderedChat
from vllm_promptcache.plan import Explanation
from vllm_promptcache.pml import parse_schema

# As many as vLLM gives unless told otherwise.
NUM_LOGPROBS = 20
_TOKEN_PREFIX = "token_id:"


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """What a server generated, greedily.

    Attributes:
        token_ids: The tokens, `[num_steps]`.
        logprobs: Log-probabilities of these and of the most probable ones, `[num_steps]`.
        num_prompt_tokens: As usage says.
        num_cached_tokens: As usage says.
    """

    token_ids: list[int]
    logprobs: list[dict[int, float]]
    num_prompt_tokens: int
    num_cached_tokens: int


def differences(
    reference: Reference, explanation: dict[str, Any], answers: Iterable[ScoredAnswer]
) -> list[Difference]:
    """Compares answers to one prompt with the reference, which runs the prompt's plan."""
    # Mostly they are the same tokens, and the reference is slow.
    score = cache(lambda token_ids: reference.score(explanation, token_ids))
    return [
        Difference.between(score(tuple(answer.token_ids)), answer.token_ids, answer.logprobs)
        for answer in answers
    ]


class ScoredEndpoints:
    """Completions and chats of a server, by the official client.

    Args:
        url: Where it listens.
        max_tokens: How many tokens each answer has.
    """

    def __init__(self, url: str, max_tokens: int) -> None:
        # A connection each: several API servers take them in turn.
        closing = {"Connection": "close"}
        self._client = OpenAI(base_url=f"{url}/v1", api_key="none", default_headers=closing)
        self._options: dict[str, Any] = {
            "model": MODEL_NAME,
            "temperature": 0,
            "max_tokens": max_tokens,
            "extra_body": {"ignore_eos": True, "return_tokens_as_token_ids": True},
        }

    def completion(self, pml: str) -> ScoredAnswer:
        """/v1/completions."""
        create = self._client.completions.create
        answer = create(prompt=pml, logprobs=NUM_LOGPROBS, **self._options)
        found = answer.choices[0].logprobs
        steps = zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True)
        return _scored([(token, {token: own} | top) for token, own, top in steps], answer.usage)

    def chat(self, pml: str) -> ScoredAnswer:
        """/v1/chat/completions, with the prompt as the only message."""
        answer = self._client.chat.completions.create(
            messages=_messages(pml), logprobs=True, top_logprobs=NUM_LOGPROBS, **self._options
        )
        steps = [
            (step.token, {item.token: item.logprob for item in (step, *step.top_logprobs)})
            for step in answer.choices[0].logprobs.content
        ]
        return _scored(steps, answer.usage)


class Plans:
    """The plans of a server's prompts.

    Args:
        model: Folder of the server's model.
        schemas: What the server knows.
    """

    def __init__(self, model: Path, schemas: Iterable[Schema]) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._planner = make_planner(
            self._tokenizer,
            PromptModulesConfig(repair="none", promote_after=0),
            max_model_len=MAX_MODEL_LEN,
            block_size=CPU_BLOCK_SIZE,
        )
        for schema in schemas:
            self._planner.schemas.add(parse_schema(schema.pml))

    def completion(self, pml: str) -> dict[str, Any]:
        """Explains a prompt of /v1/completions. Raises as `Planner.plan`."""
        return Explanation.of(self._planner.plan(pml)).to_dict()

    def chat(self, pml: str) -> dict[str, Any]:
        """Explains the only message of /v1/chat/completions. Raises as `Planner.plan`."""
        document, chat = rendered(self._tokenizer, _messages(pml))
        return Explanation.of(self._planner.plan(document, chat=chat)).to_dict()


def rendered(tokenizer: Any, messages: list[Any]) -> tuple[Any, RenderedChat]:
    """The PML prompt of a conversation, and the conversation as its template has it."""
    chat = PMLChat.find(messages)
    assert chat is not None

    def render(messages: Any, params: ChatParams) -> tuple[Any, dict[str, str]]:
        kwargs = params.chat_template_kwargs
        text = tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
        return messages, {"prompt": text}

    params = ChatParams(chat_template_kwargs={"add_generation_prompt": True})
    return chat.document, RenderedChat(chat, chat.messages, params, render)


def _messages(pml: str) -> list[Any]:
    return [{"role": "user", "content": pml}]


def _scored(steps: list[tuple[str, dict[str, float]]], usage: Any) -> ScoredAnswer:
    return ScoredAnswer(
        token_ids=[_token_id(token) for token, _ in steps],
        logprobs=[{_token_id(token): value for token, value in top.items()} for _, top in steps],
        num_prompt_tokens=usage.prompt_tokens,
        num_cached_tokens=usage.prompt_tokens_details.cached_tokens,
    )


def _token_id(token: str) -> int:
    return int(token.removeprefix(_TOKEN_PREFIX))
