"""Positions of requests with modules (paper 3.4: positions are those of the schema)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from vllm_promptcache.kernels.transfers import to_device
from vllm_promptcache.steps.step import StepMetadata
from vllm_promptcache.worker.step_batch import StepBatch


class Positions:
    """What is added to vLLM's index of each token to get its position.

    The scheduler tells the offsets of a request's first tokens; from the last one of these on it
    stays the same, and is kept here by the request's id. So it does not matter where in the batch
    the request is, and whether it is in each step. One that was preempted is told anew.
    """

    def __init__(self) -> None:
        self._offsets: dict[str, int] = {}
        # Of the batch that was last asked for: its requests, their offsets, and a copy of these on
        # the device.
        self._batch: list[str] | None = None
        self._rows: npt.NDArray[np.int64]
        self._on_device: torch.Tensor | None

    def begin(self, step: StepMetadata) -> None:
        """Forgets requests that have ended, then takes note of what is told of others."""
        for request_id in step.ended:
            if self._offsets.pop(request_id, None) is not None:
                self._batch = None
        for request_id, runs in step.position_offsets:
            self._offsets[request_id] = runs[-1][1]
            self._batch = None

    def offsets(
        self, batch: StepBatch, step: StepMetadata, device: torch.device
    ) -> torch.Tensor | None:
        """What is added in a step that has begun, `[num_tokens]`; None for nothing.

        The tensor may be given again for a later step, so it must not be changed.
        """
        if not self._offsets:
            return None
        self._find_rows(batch.request_ids)
        if not (self._rows.any() or step.position_offsets):
            return None
        if batch.num_tokens == len(self._rows):  # one each, as in most steps
            if self._on_device is None:
                self._on_device = to_device(self._rows, device)
            return self._on_device
        offsets = np.repeat(self._rows, np.diff(batch.starts))
        batch.write(offsets, step.position_offsets)
        return to_device(offsets, device)

    def _find_rows(self, request_ids: list[str]) -> None:
        if request_ids != self._batch:
            self._batch = list(request_ids)
            self._rows = np.array([self._offsets.get(i, 0) for i in request_ids], dtype=np.int64)
            self._on_device = None
