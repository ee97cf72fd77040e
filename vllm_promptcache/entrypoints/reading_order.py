"""Prompts as clients see them: in the order of reading.

The engine takes a prompt's tokens in the order of the block table, modules first. All others in the
front end (echoes, returned tokens, detokenizers, routes that leave the plan behind) get them by
position. The two part where a request is told to vLLM's output processor.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any


class EngineTokens(list[int]):
    """A prompt's tokens in the order of the block table, on their way to the engine.

    Args:
        token_ids: These tokens.
        read: The same tokens in the order of reading.
    """

    def __init__(self, token_ids: Iterable[int], read: list[int]) -> None:
        super().__init__(token_ids)
        self.read = read


def add_request(
    original: Callable[..., None], processor: Any, request: Any, *args: Any, **kwargs: Any
) -> None:
    """Wraps vLLM's `OutputProcessor.add_request`, from which all outputs of a request come."""
    tokens = request.prompt_token_ids
    if isinstance(tokens, EngineTokens):
        request = copy.copy(request)
        request.prompt_token_ids = tokens.read
    original(processor, request, *args, **kwargs)
