"""Where the tokens of a step go and what they see, between its preparation and its forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vllm_promptcache.kernels.transfers import to_device
from vllm_promptcache.steps.step import StepMetadata
from vllm_promptcache.worker.attention_rows import RowSplit
from vllm_promptcache.worker.positions import Positions
from vllm_promptcache.worker.runner_inputs import RunnerInputs
from vllm_promptcache.worker.step_batch import StepBatch


@dataclass(slots=True)
class Placement:
    """Gives the tokens of a step their positions and slots.

    Attributes:
        inputs: Those of the worker's model runner.
        positions: Of running requests.
        step: Our part of the step; an empty one outside of steps.
        split: How the requests of the step are split into rows of attention; None without any.
    """

    inputs: RunnerInputs
    positions: Positions = field(default_factory=Positions)
    step: StepMetadata = field(default_factory=StepMetadata)
    split: RowSplit | None = None

    def begin(self, step: StepMetadata) -> None:
        """Begins a step, before vLLM prepares anything of it."""
        self.step, self.split = step, None
        self.positions.begin(step)

    def end(self) -> None:
        """Ends it: vLLM also makes batches of its own, to warm up."""
        self.step, self.split = StepMetadata(), None

    @property
    def is_regular(self) -> bool:
        """Whether the step is like those that full CUDA graphs are captured of.

        In a replay there are as many rows of attention as requests, and no Python runs that could
        observe a layer.
        """
        return not (self.step.rows or self.step.observed)

    def place(self, prepared: Any) -> StepBatch:
        """Gives the tokens of the step their positions and slots; mutates the runner's inputs.

        Args:
            prepared: What `inputs` takes.
        """
        batch, step = self.inputs.batch(prepared), self.step
        # Slots come from vLLM's own count, so they are first.
        if step.rows:
            self.inputs.move_slots(prepared, self._slot_offsets(batch))
            self.split = RowSplit({batch.numbers[i]: rows for i, rows in step.rows})
        offsets = self.positions.offsets(batch, step, self.inputs.device)
        self.inputs.move_positions(prepared, offsets)
        return batch

    def _slot_offsets(self, batch: StepBatch) -> torch.Tensor:
        offsets = np.zeros(batch.num_tokens, dtype=np.int64)
        batch.write(offsets, self.step.slot_offsets)
        return to_device(offsets, self.inputs.device)
