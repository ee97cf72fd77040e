"""Requests that the engine has ended with an error: the reason on its way to the client.

vLLM's servers answer such a request with "Internal server error", and its offline engine returns an
empty text. Here the one raises an exception with the reason, and so does the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from vllm.exceptions import GenerationError, GracefulHTTPError, VLLMClientError
from vllm.outputs import RequestOutput
from vllm.v1.engine import EngineCoreOutput, FinishReason

from vllm_promptcache.errors import FAILED, PlanError


class RequestEnded(VLLMClientError, GenerationError):
    """A request that this engine cannot serve; vLLM's servers answer it with 400 and the reason.

    A client error, so that vLLM lets it through as it is; a generation error, so that a stream ends
    with an error event.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.status_code = HTTPStatus.BAD_REQUEST


class RequestFailed(GracefulHTTPError, GenerationError):
    """A request that this engine has failed to serve; vLLM's servers answer it with 500.

    Graceful, so that vLLM lets it through with the reason; a generation error as `RequestEnded`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason, HTTPStatus.INTERNAL_SERVER_ERROR)


class RequestsEnded(PlanError):
    """Some of the prompts of a call could not be served.

    Attributes:
        outputs: Of all prompts, in their order; those that were not served have the finish reason
            "error" and the reason as their stop reason.
    """

    def __init__(self, message: str, outputs: Sequence[RequestOutput]) -> None:
        super().__init__(message)
        self.outputs = outputs

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.outputs)


def check_served(outputs: list[RequestOutput]) -> list[RequestOutput]:
    """Returns the outputs of an offline call.

    Raises:
        RequestsEnded: The engine has ended some of them; it holds the others too.
    """
    reasons = {
        number: completion.stop_reason
        for number, output in enumerate(outputs)
        for completion in output.outputs
        if completion.finish_reason == "error" and isinstance(completion.stop_reason, str)
    }
    if reasons:
        first, reason = next(iter(reasons.items()))
        raise RequestsEnded(
            f"{len(reasons)} of {len(outputs)} prompts were not served, the first is number "
            f"{first + 1}: {reason}",
            outputs,
        )
    return outputs


def process_outputs(
    original: Callable[..., Any],
    processor: Any,
    engine_core_outputs: Sequence[EngineCoreOutput],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Wraps `OutputProcessor.process_outputs`: who waits for an ended request gets the reason."""
    ended = [
        (state.queue, output.stop_reason)
        for output in engine_core_outputs
        if output.finish_reason is FinishReason.ERROR
        and isinstance(output.stop_reason, str)
        and (state := processor.request_states.get(output.request_id)) is not None
        and state.queue is not None
    ]
    processed = original(processor, engine_core_outputs, *args, **kwargs)
    for queue, reason in ended:
        queue.put(RequestFailed(reason) if reason.startswith(FAILED) else RequestEnded(reason))
    return processed
