"""What a client is told of its modules, in a stream as vLLM makes it from 0.33 on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from vllm_promptcache.entrypoints.detail import in_completion, in_stream

MODULES = [{"name": "trip", "reused": 12}]


async def vllm_stream(server: Any, request: Any, outputs: Any) -> AsyncIterator[str]:
    async for output in outputs:
        yield f"data: {json.dumps({'kv_transfer_params': output.kv_transfer_params})}\n\n"
    yield "data: [DONE]\n\n"


def streamed(params: dict[str, Any]) -> list[Any]:
    async def outputs() -> AsyncIterator[Any]:
        yield SimpleNamespace(kv_transfer_params=params)

    async def run() -> list[str]:
        request = SimpleNamespace(model_extra={"prompt_modules": {"detail": True}})
        return [chunk async for chunk in in_stream(vllm_stream, None, request, outputs())]

    *chunks, done = asyncio.run(run())
    assert done == "data: [DONE]\n\n"
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


def test_a_stream_tells_of_modules_in_their_own_field_only() -> None:
    (chunk,) = streamed({"prompt_modules": list(MODULES)})
    assert chunk == {"kv_transfer_params": None, "prompt_modules": MODULES}


def test_what_else_a_connector_says_stays() -> None:
    (chunk,) = streamed({"prompt_modules": list(MODULES), "blocks": [1]})
    assert chunk == {"kv_transfer_params": {"blocks": [1]}, "prompt_modules": MODULES}


def test_a_response_that_shares_them_with_an_output_is_cleared_too() -> None:
    output = SimpleNamespace(kv_transfer_params={"prompt_modules": list(MODULES)})
    usage = SimpleNamespace(prompt_tokens_details=None)
    response = SimpleNamespace(usage=usage, kv_transfer_params=output.kv_transfer_params)
    assert in_completion(lambda server, outputs: response, None, [output]) is response
    assert response.prompt_modules == MODULES
    assert response.kv_transfer_params is None
