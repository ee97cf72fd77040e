"""Requests that the engine has ended: the reason reaches whoever waits."""

from __future__ import annotations

import asyncio
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import GenerationError, GracefulHTTPError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.engine.output_processor import RequestOutputCollector

from vllm_promptcache.entrypoints.ended import (
    RequestEnded,
    RequestFailed,
    RequestsEnded,
    check_served,
    process_outputs,
)
from vllm_promptcache.errors import FAILED

REASON = "18 tokens with their modules need 7 KV cache blocks of 4 tokens, the cache has 4"


def output(finish_reason: str, stop_reason: str | None) -> RequestOutput:
    completion = CompletionOutput(
        0, "", [], None, None, finish_reason=finish_reason, stop_reason=stop_reason
    )
    return RequestOutput("1", None, [7], None, [completion], finished=True)


def test_a_client_that_waits_gets_the_reason_and_no_empty_text() -> None:
    queue = RequestOutputCollector(RequestOutputKind.DELTA, "1")
    processor = SimpleNamespace(request_states={"1": SimpleNamespace(queue=queue)})
    ended = EngineCoreOutput("1", [], finish_reason=FinishReason.ERROR, stop_reason=REASON)
    aborted = EngineCoreOutput("2", [], finish_reason=FinishReason.ABORT)

    def original(processor: Any, outputs: Any) -> str:
        queue.put(output("error", REASON))
        return "processed"

    assert process_outputs(original, processor, [ended, aborted]) == "processed"
    with pytest.raises(RequestEnded, match="need 7 KV cache blocks"):
        asyncio.run(queue.get())


def test_a_server_answers_with_400_and_the_reason() -> None:
    error = create_error_response(RequestEnded(REASON)).error
    assert (error.code, error.type, error.message) == (400, "BadRequestError", REASON)
    # A stream that has begun ends with an error event.
    assert isinstance(RequestEnded(REASON), GenerationError)


def test_a_fault_of_the_engine_is_no_fault_of_the_client() -> None:
    queue = RequestOutputCollector(RequestOutputKind.DELTA, "1")
    processor = SimpleNamespace(request_states={"1": SimpleNamespace(queue=queue)})
    reason = f"{FAILED}IndexError"
    failed = EngineCoreOutput("1", [], finish_reason=FinishReason.ERROR, stop_reason=reason)
    process_outputs(lambda *args: None, processor, [failed])
    # What vLLM's engine client lets through with its reason.
    with pytest.raises(GracefulHTTPError) as caught:
        asyncio.run(queue.get())
    assert isinstance(caught.value, RequestFailed)
    assert isinstance(caught.value, GenerationError)
    assert caught.value.status_code == 500
    error = create_error_response(caught.value).error
    assert (error.code, error.message) == (500, reason)


def test_an_offline_call_raises_the_reason_and_keeps_the_other_outputs() -> None:
    outputs = [output("length", None), output("error", REASON)]
    with pytest.raises(RequestsEnded, match=r"1 of 2 prompts .* number 2: 18 tokens") as caught:
        check_served(outputs)
    assert caught.value.outputs is outputs
    assert pickle.loads(pickle.dumps(caught.value)).message == caught.value.message
    assert check_served(outputs[:1]) == outputs[:1]
    # vLLM's own errors have no reason to tell.
    assert check_served([output("error", None)])
