"""Position ids of requests with modules (paper 3.4: positions are those of the schema)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm.v1.core.sched.output import SchedulerOutput

from vllm_promptcache.core.step import find_step


def apply_position_offsets(runner: Any, scheduler_output: SchedulerOutput) -> None:
    """Adds a step's position offsets to the positions that the model will get.

    Args:
        runner: A V1 model runner whose inputs are prepared; its `positions` are mutated.
        scheduler_output: The step, with our connector's metadata.
    """
    step = find_step(scheduler_output.kv_connector_metadata)
    if step is None or not step.position_offsets:
        return
    num_tokens = scheduler_output.total_num_scheduled_tokens
    offsets = np.zeros(num_tokens, dtype=np.int64)
    first_tokens, rows = runner.query_start_loc.np, runner.input_batch.req_id_to_index
    for request_id, slices in step.position_offsets:
        at = int(first_tokens[rows[request_id]])
        for num, offset in slices:
            offsets[at : at + num] = offset
            at += num
    positions = runner.positions[:num_tokens]
    positions += torch.from_numpy(offsets).to(positions.device, non_blocking=True)
