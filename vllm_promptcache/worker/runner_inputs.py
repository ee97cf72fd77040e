"""Where vLLM's model runners keep the positions and slots of a step's tokens."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from vllm_promptcache.compat.runner import replace_positions
from vllm_promptcache.worker.step_batch import StepBatch


class RunnerInputs(Protocol):
    """The prepared inputs of a model runner's step.

    vLLM counts the tokens of a request by an index. Offsets are added to it, `[num_tokens]` int64
    on the device; they are not changed.
    """

    device: torch.device

    def batch(self, prepared: Any) -> StepBatch:
        """The step's batch."""

    def move_slots(self, prepared: Any, offsets: torch.Tensor) -> None:
        """Stores tokens elsewhere in their requests' blocks; before `move_positions`."""

    def move_positions(self, prepared: Any, offsets: torch.Tensor | None) -> None:
        """Gives the model other positions than indexes; called in each step."""


class V1Inputs:
    """Those of a V1 runner, which is what it prepares as well."""

    def __init__(self, runner: Any) -> None:
        self.device: torch.device = runner.positions.device

    def batch(self, prepared: Any) -> StepBatch:
        """See `RunnerInputs.batch`."""
        request_ids = prepared.input_batch.req_ids
        return StepBatch(request_ids, prepared.query_start_loc.np[: len(request_ids) + 1])

    def move_slots(self, prepared: Any, offsets: torch.Tensor) -> None:
        """See `RunnerInputs.move_slots`."""
        num_requests = len(prepared.input_batch.req_ids)
        prepared.input_batch.block_table.compute_slot_mapping(
            num_requests,
            prepared.query_start_loc.gpu[: num_requests + 1],
            prepared.positions[: len(offsets)] + offsets,
        )

    def move_positions(self, prepared: Any, offsets: torch.Tensor | None) -> None:
        """See `RunnerInputs.move_positions`."""
        if offsets is not None:
            prepared.positions[: len(offsets)] += offsets


class V2Inputs:
    """Those of a V2 runner, which prepares an `InputBatch`.

    Its sampler reads indexes in `InputBatch.positions` (for `min_tokens` and seeds), so these stay
    as they are, and the model gets a buffer of its own: one that is never moved, since CUDA graphs
    are captured with its address.
    """

    def __init__(self, runner: Any) -> None:
        self.device: torch.device = runner.device
        self._block_tables = runner.block_tables
        self._positions = torch.zeros(runner.max_num_tokens, dtype=torch.int64, device=self.device)
        self._offsets: torch.Tensor | None = None
        replace_positions(runner, self._of_batch, self._of_dummies)

    def batch(self, prepared: Any) -> StepBatch:
        """See `RunnerInputs.batch`."""
        starts = prepared.query_start_loc_np[: len(prepared.req_ids) + 1]
        return StepBatch(prepared.req_ids, starts)

    def move_slots(self, prepared: Any, offsets: torch.Tensor) -> None:
        """See `RunnerInputs.move_slots`."""
        # In place: into the buffer that graphs read.
        self._block_tables.compute_slot_mappings(
            prepared.idx_mapping,
            prepared.query_start_loc,
            prepared.positions[: len(offsets)] + offsets,
            num_tokens_padded=prepared.num_tokens_after_padding,
        )

    def move_positions(self, prepared: Any, offsets: torch.Tensor | None) -> None:
        """See `RunnerInputs.move_positions`."""
        self._offsets = offsets

    def _of_batch(self, prepared: Any) -> torch.Tensor:
        positions = self._positions[: len(prepared.positions)].copy_(prepared.positions)
        # Batches of vLLM's own, to warm up, are not placed.
        if (offsets := self._offsets) is not None:
            positions[: len(offsets)] += offsets
            self._offsets = None
        return positions

    def _of_dummies(self, num_tokens: int) -> torch.Tensor:
        return self._positions[:num_tokens].zero_()


def runner_inputs(runner: Any) -> RunnerInputs:
    """Those of a model runner that has its KV cache; a V2 runner's model is hooked."""
    is_v2 = runner.vllm_config.use_v2_model_runner
    return V2Inputs(runner) if is_v2 else V1Inputs(runner)
