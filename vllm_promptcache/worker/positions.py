"""Positions and slots of requests with modules (paper 3.4: positions are those of the schema)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vllm_promptcache.steps.step import OffsetRuns, StepMetadata
from vllm_promptcache.worker.attention_probe import ObservedTokens
from vllm_promptcache.worker.attention_rows import RowSplit


class Positions:
    """Gives the tokens of steps their positions and slots.

    vLLM counts the tokens of a request by an index, from which its position differs by an offset.
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

    def end(self, request_ids: Iterable[str]) -> None:
        """Forgets requests that have ended."""
        for request_id in request_ids:
            if self._offsets.pop(request_id, None) is not None:
                self._batch = None

    def place(self, runner: Any, step: StepMetadata) -> RowSplit | None:
        """Gives a step's tokens their positions and slots.

        Args:
            runner: A V1 model runner whose inputs are prepared; its `positions` are mutated, and
                its slot mapping where new tokens of a request stand between those of modules.
            step: Our part of the step.

        Returns:
            How the requests whose tokens do not see all before them are split; None without any.
        """
        for request_id, runs in step.position_offsets:
            self._offsets[request_id] = runs[-1][1]
            self._batch = None
        if not self._offsets:
            return None
        num_tokens = int(runner.query_start_loc.np[len(runner.input_batch.req_ids)])
        # Slots come from vLLM's own count, so they are first.
        split = _place_slots(runner, step, num_tokens) if step.rows else None
        self._find_rows(runner.input_batch.req_ids)
        if self._rows.any() or step.position_offsets:
            positions = runner.positions[:num_tokens]
            positions += self._of_tokens(runner, step, num_tokens)
        return split

    def _find_rows(self, request_ids: list[str]) -> None:
        if request_ids != self._batch:
            self._batch = list(request_ids)
            self._rows = np.array([self._offsets.get(i, 0) for i in request_ids], dtype=np.int64)
            self._on_device = None

    def _of_tokens(self, runner: Any, step: StepMetadata, num_tokens: int) -> torch.Tensor:
        """What is added to vLLM's index of each token of a step, `[num_tokens]`."""
        device = runner.positions.device
        if num_tokens == len(self._rows):  # one each, as in most steps
            if self._on_device is None:
                self._on_device = torch.from_numpy(self._rows).to(device, non_blocking=True)
            return self._on_device
        starts = runner.query_start_loc.np[: len(self._rows) + 1]
        offsets = np.repeat(self._rows, np.diff(starts))
        _write(offsets, runner, step.position_offsets)
        return torch.from_numpy(offsets).to(device, non_blocking=True)


def _place_slots(runner: Any, step: StepMetadata, num_tokens: int) -> RowSplit:
    numbers = runner.input_batch.req_id_to_index
    offsets = np.zeros(num_tokens, dtype=np.int64)
    _write(offsets, runner, step.slot_offsets)
    added = torch.from_numpy(offsets).to(runner.positions.device, non_blocking=True)
    runner.input_batch.block_table.compute_slot_mapping(
        len(numbers),
        runner.query_start_loc.gpu[: len(numbers) + 1],
        runner.positions[:num_tokens] + added,
    )
    return RowSplit({numbers[request_id]: rows for request_id, rows in step.rows})


def _write(
    offsets: npt.NDArray[np.int64], runner: Any, requests: Iterable[tuple[str, OffsetRuns]]
) -> None:
    """Writes what was told of the tokens of some requests into `offsets`, `[num_tokens]`."""
    first_tokens, numbers = runner.query_start_loc.np, runner.input_batch.req_id_to_index
    for request_id, runs in requests:
        at = int(first_tokens[numbers[request_id]])
        for num_tokens, offset in runs:
            offsets[at : at + num_tokens] = offset
            at += num_tokens


def observed_tokens(runner: Any, step: StepMetadata) -> list[ObservedTokens]:
    """Where in a step's batch the last tokens of its probes are."""
    if not step.observed:
        return []
    ends, numbers = runner.query_start_loc.np[1:], runner.input_batch.req_id_to_index
    observed = []
    for request in step.observed:
        end = int(ends[numbers[request.request_id]])
        rows = range(end - request.num_tokens, end)
        observed.append(ObservedTokens(request.request_id, rows, request.slots))
    return observed
