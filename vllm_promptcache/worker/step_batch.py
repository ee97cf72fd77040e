"""A step's batch as far as positions and slots depend on it, whichever model runner made it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from vllm_promptcache.steps.step import ObservedRequest, OffsetRuns
from vllm_promptcache.worker.attention_probe import ObservedTokens


@dataclass(frozen=True)
class StepBatch:
    """The requests of a step in the order of the batch, and where their tokens are.

    Attributes:
        request_ids: vLLM's ids.
        starts: Each request's first token in the batch, and the number of all tokens:
            `[num_requests + 1]`.
    """

    request_ids: list[str]
    starts: npt.NDArray[np.integer]

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes, without any that are padded."""
        return int(self.starts[-1])

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The place in the batch of each request."""
        return {request_id: number for number, request_id in enumerate(self.request_ids)}

    def write(
        self, offsets: npt.NDArray[np.int64], requests: Iterable[tuple[str, OffsetRuns]]
    ) -> None:
        """Writes what was told of the tokens of some requests into `offsets`, `[num_tokens]`."""
        for request_id, runs in requests:
            at = int(self.starts[self.numbers[request_id]])
            for num_tokens, offset in runs:
                offsets[at : at + num_tokens] = offset
                at += num_tokens

    def observed(self, requests: Iterable[ObservedRequest]) -> list[ObservedTokens]:
        """Where in the batch the last tokens of probes are."""
        found = []
        for request in requests:
            end = int(self.starts[self.numbers[request.request_id] + 1])
            rows = range(end - request.num_tokens, end)
            found.append(ObservedTokens(request.request_id, rows, request.slots))
        return found
