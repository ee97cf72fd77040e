"""Tells a client what its prompt reused, where it asked: `prompt_modules: {"detail": true}`.

The engine reports a request's modules with its last output; here they become the field
`prompt_modules` of the response, or of the last chunk of a stream.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from vllm_promptcache.entrypoints.request_options import REQUEST_FIELD, RequestOptions

_DONE = "data: [DONE]"


def in_completion(
    original: Callable[..., Any], server: Any, outputs: Any, *args: Any, **kw: Any
) -> Any:
    """Wraps `OpenAIServingCompletion.request_output_to_completion_response`.

    Also makes cached tokens of a list of prompts the sum over all of them, like all other counts;
    vLLM gives those of the last prompt.
    """
    response = original(server, outputs, *args, **kw)
    details = response.usage.prompt_tokens_details
    if details is not None:
        details.cached_tokens = sum(output.num_cached_tokens or 0 for output in outputs)
    if modules := [module for output in outputs for module in _take(output)]:
        setattr(response, REQUEST_FIELD, modules)
        _take(response)
    return response


async def in_chat(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Wraps `OpenAIServingChat.chat_completion_full_generator`."""
    response = await original(*args, **kwargs)
    if modules := _take(response):
        setattr(response, REQUEST_FIELD, modules)
    return response


async def in_stream(
    original: Callable[..., Any], server: Any, request: Any, *args: Any, **kwargs: Any
) -> AsyncIterator[str]:
    """Wraps the stream generators of both serving classes."""
    modules: list[Any] = []
    if not RequestOptions.of(request).has_detail:
        async for chunk in original(server, request, *args, **kwargs):
            yield chunk
        return
    args, kwargs = _watch(args, kwargs, modules)
    held = None
    async for chunk in original(server, request, *args, **kwargs):
        if held is not None:
            yield _with_modules(held, modules) if chunk.startswith(_DONE) else held
        held = chunk
    if held is not None:
        yield held


def _watch(args: Any, kwargs: Any, modules: list[Any]) -> tuple[Any, Any]:
    """Puts an observer in the place of the engine's outputs, the one asynchronous iterator."""

    async def watched(outputs: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for output in outputs:
            # Of a list of prompts, each comes with its index.
            result = output[1] if isinstance(output, tuple) else output
            modules.extend(_take(result))
            yield output

    def watch(value: Any) -> Any:
        return watched(value) if hasattr(value, "__aiter__") else value

    return tuple(map(watch, args)), {key: watch(value) for key, value in kwargs.items()}


def _take(told: Any) -> list[Any]:
    """Takes the modules out of the parameters of an output or a response. Mutates it.

    vLLM writes the parameters into responses, from 0.33 on into the last chunk of a stream too;
    where nothing else is in them, there shall be none.
    """
    params = getattr(told, "kv_transfer_params", None)
    if params is None:
        return []
    modules: list[Any] = params.pop(REQUEST_FIELD, [])
    told.kv_transfer_params = params or None
    return modules


def _with_modules(chunk: str, modules: list[Any]) -> str:
    body = json.loads(chunk.removeprefix("data: "))
    return f"data: {json.dumps(body | {REQUEST_FIELD: modules})}\n\n"
