"""Unchanged clients whose documents are marked: OpenAI's and Anthropic's own packages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from anthropic import Anthropic
from openai import OpenAI

from tests.generators import random_text

NUM_DOCUMENTS = 6
NUM_IMPORTED = 4
NUM_WORDS = 60
MARK = {"cache_control": {"type": "ephemeral"}}
RULES = "You answer in a few words."


@dataclass(frozen=True, slots=True)
class Usage:
    """What a response says of its prompt: tokens in all, those read, and the answer."""

    num_tokens: int
    num_cached: int
    text: str


class MarkedClients:
    """Asks about documents in random order.

    Args:
        url: Of the server.
        model: Its name there.
    """

    def __init__(self, url: str, model: str) -> None:
        self._model = model
        self._openai = OpenAI(base_url=f"{url}/v1", api_key="none")
        self._anthropic = Anthropic(base_url=url, api_key="none")
        rng = Random(0)
        self.documents = [f"{random_text(rng, NUM_WORDS)}." for _ in range(NUM_DOCUMENTS)]

    def orders(self, number: int, seed: int) -> Iterator[list[int]]:
        """Numbers of documents, each time others in another order."""
        rng = Random(seed)
        return (rng.sample(range(NUM_DOCUMENTS), NUM_IMPORTED) for _ in range(number))

    def chat(self, order: list[int], mark: dict[str, Any] = MARK, **options: Any) -> Usage:
        """A chat completion."""
        answer = self._openai.chat.completions.create(
            model=self._model,
            messages=[{"role": "system", "content": RULES}, self._user(order, "text", mark)],
            max_tokens=8,
            temperature=0,
            **options,
        )
        usage, details = answer.usage, answer.usage.prompt_tokens_details
        text = answer.choices[0].message.content
        return Usage(usage.prompt_tokens, details.cached_tokens if details else 0, text)

    def response(self, order: list[int]) -> Usage:
        """A response."""
        answer = self._openai.responses.create(
            model=self._model,
            instructions=RULES,
            input=[self._user(order, "input_text", MARK)],
            max_output_tokens=8,
            temperature=0,
        )
        usage = answer.usage
        return Usage(
            usage.input_tokens, usage.input_tokens_details.cached_tokens, answer.output_text
        )

    def message(self, order: list[int]) -> Usage:
        """A message, with a marked block in its system text."""
        answer = self._anthropic.messages.create(
            model=self._model,
            system=[{"type": "text", "text": RULES, **MARK}],
            messages=[self._user(order, "text", MARK)],
            max_tokens=8,
            extra_body={"temperature": 0},
        )
        usage = answer.usage
        read, created = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
        return Usage(usage.input_tokens + read + created, read, answer.content[0].text)

    def tool_result(self, number: int) -> Usage:
        """A message whose last turn has what a tool has found, and a question."""
        found = [{"type": "text", "text": self.documents[number], **MARK}]
        call = {"type": "tool_use", "id": "call", "name": "find", "input": {}}
        result = {"type": "tool_result", "tool_use_id": "call", "content": found}
        answer = self._anthropic.messages.create(
            model=self._model,
            messages=[
                {"role": "user", "content": "Find it."},
                {"role": "assistant", "content": [call]},
                {"role": "user", "content": [result, {"type": "text", "text": "What is it?"}]},
            ],
            max_tokens=8,
            extra_body={"temperature": 0},
        )
        usage = answer.usage
        return Usage(usage.input_tokens, usage.cache_read_input_tokens, answer.content[0].text)

    def _user(self, order: list[int], kind: str, mark: dict[str, Any]) -> Any:
        documents = [{"type": kind, "text": self.documents[i], **mark} for i in order]
        question = {"type": kind, "text": "What is this about?"}
        return {"role": "user", "content": [*documents, question]}
