"""Every endpoint of a live server against every kind of request, as a table.

The server must know the schema of `tests/engine/test_server.py` and have tool calls on:

    python -m tests.engine.endpoints http://127.0.0.1:8000 MODEL
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from openai import APIStatusError, OpenAI

PROMPT = (
    '<prompt schema="travel"><plan duration="a week"><maui/></plan>'
    "<user>Name the surf spots.</user></prompt>"
)
PLAIN = "The sky is"
BAD = PROMPT.replace("maui", "mauii")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a place.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}},
                "required": ["place"],
            },
        },
    }
]
FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "number",
        "schema": {
            "type": "object",
            "properties": {"n": {"type": "integer"}},
            "required": ["n"],
            "additionalProperties": False,
        },
    },
}
FORM = {
    "schema": "travel",
    "imports": ["plan/maui"],
    "arguments": {"plan": {"duration": "a week"}},
}
NUM_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        texts: One for each choice; the message of an error.
        num_prompt_tokens: As usage says.
        num_cached_tokens: As usage says.
        status: HTTP status.
    """

    texts: tuple[str, ...]
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    status: int = 200

    def __str__(self) -> str:
        text = " | ".join(self.texts).replace("\n", "\\n")
        counts = f"{self.num_cached_tokens}/{self.num_prompt_tokens} cached"
        return f"{self.status} {counts if self.status == 200 else ''} {text[:90]!r}"


class Endpoints:
    """The endpoints of one server.

    Args:
        url: Where it listens.
        model: Its name there.
        api_key: Its key, if it has one.
    """

    def __init__(self, url: str, model: str, api_key: str = "none") -> None:
        self._openai = OpenAI(base_url=f"{url}/v1", api_key=api_key)
        self._url, self._model, self._key = url, model, api_key
        self.by_name: dict[str, Callable[..., Answer]] = {
            "completions": self.completion,
            "chat": self.chat,
            "responses": self.response,
            "messages": self.message,
        }

    def completion(self, prompt: Any, **options: Any) -> Answer:
        """/v1/completions."""
        call = self._openai.completions.create
        options = {"model": self._model, "prompt": prompt} | _defaults(options)
        if options.get("stream"):
            return _streamed(call(**options), lambda choice: choice.text)
        return _whole(call(**options), lambda choice: choice.text)

    def chat(self, prompt: Any, **options: Any) -> Answer:
        """/v1/chat/completions; a string is the only message."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        call = self._openai.chat.completions.create
        options = {"model": self._model, "messages": messages} | _defaults(options)
        if options.get("stream"):
            return _streamed(call(**options), lambda choice: choice.delta.content)
        return _whole(call(**options), lambda choice: choice.message)

    def response(self, prompt: str, **options: Any) -> Answer:
        """/v1/responses."""
        options = {"temperature": 0} | options
        create = self._openai.responses.create
        answer = create(model=self._model, input=prompt, max_output_tokens=NUM_TOKENS, **options)
        if options.get("stream"):
            *_, last = answer
            answer = last.response
        usage = answer.usage
        cached = usage.input_tokens_details.cached_tokens
        return Answer((answer.output_text,), usage.input_tokens, cached)

    def message(self, prompt: str, **options: Any) -> Answer:
        """/v1/messages, Anthropic's."""
        body = {
            "model": self._model,
            "max_tokens": NUM_TOKENS,
            "temperature": 0,
            "messages": [{"role": "user", "content": prompt}],
        }
        headers = {"Authorization": f"Bearer {self._key}"}
        url = f"{self._url}/v1/messages"
        answer = httpx.post(url, json=body | options, headers=headers, timeout=300)
        if answer.status_code != httpx.codes.OK:
            return Answer((answer.json()["error"]["message"],), status=answer.status_code)
        if options.get("stream"):
            return Answer((str(answer.text.count("content_block_delta")) + " deltas",))
        usage, content = answer.json()["usage"], answer.json()["content"]
        cached = usage["cache_read_input_tokens"]
        return Answer((content[0]["text"],), usage["input_tokens"] + cached, cached)

    def attempt(self, name: str, prompt: Any, **options: Any) -> Answer:
        """Calls an endpoint; an error is an answer too."""
        try:
            return self.by_name[name](prompt, **options)
        except APIStatusError as error:
            return Answer((error.body["message"],), status=error.status_code)  # type: ignore[index,call-overload]

    def table(self) -> Iterator[tuple[str, str, Answer]]:
        """Endpoint, kind of request, answer: of all kinds that an endpoint has."""
        self.attempt("completions", PROMPT)  # its modules are resident from here on
        for name, kind, prompt, options in _cases():
            yield name, kind, self.attempt(name, prompt, **options)


def _cases() -> Iterator[tuple[str, str, Any, dict[str, Any]]]:
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    several = {"n": 2, "temperature": 0.8, "seed": 1}
    for name in ("completions", "chat"):
        yield name, "plain", PLAIN, {}
        yield name, "PML", PROMPT, {}
        yield name, "PML stream", PROMPT, streamed
        yield name, "PML n=2", PROMPT, several
        yield name, "PML logprobs", PROMPT, {"logprobs": 2 if name == "completions" else True}
        yield name, "PML stop", PROMPT, {"stop": ["surf"]}
        yield name, "PML json", PROMPT, {"extra_body": {"response_format": FORMAT}}
        yield name, "form", "Name the surf spots.", {"extra_body": {"prompt_modules": FORM}}
        yield name, "bad input", BAD, {}
        yield name, "bad, stream", BAD, streamed
    yield "completions", "PML, plain", [PROMPT, PLAIN], {}
    yield "completions", "prompt_logprobs", PROMPT, {"extra_body": {"prompt_logprobs": 1}}
    yield "completions", "beam search", PROMPT, {"n": 2, "extra_body": {"use_beam_search": True}}
    tools = {"tools": TOOLS, "tool_choice": "required", "max_tokens": 60}
    yield "chat", "plain tools", PLAIN, tools
    yield "chat", "PML tools", PROMPT, tools
    system = [{"role": "system", "content": "Hi."}, {"role": "user", "content": PROMPT}]
    yield "chat", "PML behind system", system, {}
    parts = [{"type": "text", "text": text} for text in ("Hi.", PROMPT, "Name two.")]
    yield "chat", "PML part", [{"role": "user", "content": parts}], {}
    misplaced = [{"role": "system", "content": PROMPT}, {"role": "user", "content": "Hi."}]
    yield "chat", "PML as system", misplaced, {}
    for name in ("responses", "messages"):
        yield name, "plain", PLAIN, {}
        yield name, "PML", PROMPT, {}
        yield name, "PML stream", PROMPT, {"stream": True}
        yield name, "bad input", BAD, {}


def _defaults(options: dict[str, Any]) -> dict[str, Any]:
    return {"temperature": 0, "max_tokens": NUM_TOKENS} | options


def _whole(answer: Any, text: Callable[[Any], Any]) -> Answer:
    texts = tuple(_text(text(choice)) for choice in answer.choices)
    cached = answer.usage.prompt_tokens_details.cached_tokens
    return Answer(texts, answer.usage.prompt_tokens, cached)


def _text(message: Any) -> str:
    if isinstance(message, str):
        return message
    calls = [f"{c.function.name}({c.function.arguments})" for c in message.tool_calls or ()]
    return message.content or " ".join(calls)


def _streamed(chunks: Any, text: Callable[[Any], str | None]) -> Answer:
    parts, usage = [], None
    for chunk in chunks:
        parts += [text(choice) or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    cached = usage.prompt_tokens_details.cached_tokens
    return Answer(("".join(parts),), usage.prompt_tokens, cached)


def main() -> None:
    """Prints the table of a running server."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--api-key", default="none")
    args = parser.parse_args()
    for name, kind, answer in Endpoints(args.url, args.model, args.api_key).table():
        print(f"{name:12} {kind:18} {answer}")


if __name__ == "__main__":
    main()
