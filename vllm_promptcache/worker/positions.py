"""Positions and slots of requests with modules (paper 3.4: positions are those of the schema)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from vllm_promptcache.steps.step import OffsetRuns, StepMetadata
from vllm_promptcache.worker.attention_probe import ObservedTokens
from vllm_promptcache.worker.attention_rows import RowSplit


def place_tokens(runner: Any, step: StepMetadata) -> RowSplit | None:
    """Gives a step's tokens their positions and slots.

    Args:
        runner: A V1 model runner whose inputs are prepared; its `positions` are mutated, and its
            slot mapping where the private tokens of a request have an order of their own.
        step: Our part of the step.

    Returns:
        How the requests whose tokens do not see all before them are split; None without any.
    """
    if not step.position_offsets:
        return None
    num_tokens = int(runner.query_start_loc.np[len(runner.input_batch.req_id_to_index)])
    # Slots come from vLLM's own count, so they are first.
    split = _place_slots(runner, step, num_tokens) if step.rows else None
    positions = runner.positions[:num_tokens]
    positions += _offsets(runner, step.position_offsets, num_tokens)
    return split


def _place_slots(runner: Any, step: StepMetadata, num_tokens: int) -> RowSplit:
    num_requests = len(runner.input_batch.req_id_to_index)
    runner.input_batch.block_table.compute_slot_mapping(
        num_requests,
        runner.query_start_loc.gpu[: num_requests + 1],
        runner.positions[:num_tokens] + _offsets(runner, step.slot_offsets, num_tokens),
    )
    numbers = runner.input_batch.req_id_to_index
    return RowSplit({numbers[request_id]: rows for request_id, rows in step.rows})


def _offsets(
    runner: Any, requests: Iterable[tuple[str, OffsetRuns]], num_tokens: int
) -> torch.Tensor:
    """What is added to vLLM's index of each token of a step, `[num_tokens]`."""
    offsets = np.zeros(num_tokens, dtype=np.int64)
    first_tokens, numbers = runner.query_start_loc.np, runner.input_batch.req_id_to_index
    for request_id, slices in requests:
        at = int(first_tokens[numbers[request_id]])
        for num, offset in slices:
            offsets[at : at + num] = offset
            at += num
    return torch.from_numpy(offsets).to(runner.positions.device, non_blocking=True)


def observed_tokens(runner: Any, step: StepMetadata) -> list[ObservedTokens]:
    """Where in a step's batch the last tokens of its probes are."""
    ends, numbers = runner.query_start_loc.np[1:], runner.input_batch.req_id_to_index
    observed = []
    for request in step.observed:
        end = int(ends[numbers[request.request_id]])
        rows = range(end - request.num_tokens, end)
        observed.append(ObservedTokens(request.request_id, rows, request.slots))
    return observed
