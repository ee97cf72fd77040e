"""Position offsets of a step."""

from types import SimpleNamespace

import numpy as np
import torch

from vllm_promptcache.core.step import StepMetadata
from vllm_promptcache.worker.positions import apply_position_offsets


def test_offsets_are_added_to_the_tokens_of_their_requests_only():
    runner = SimpleNamespace(
        positions=torch.tensor([5, 6, 7, 40, 41, 42, 9, 99]),
        query_start_loc=SimpleNamespace(np=np.array([0, 3, 6, 7])),
        input_batch=SimpleNamespace(req_id_to_index={"plain": 0, "modular": 1, "decode": 2}),
    )
    step = StepMetadata(
        position_offsets=[("decode", ((1, 100),)), ("modular", ((2, -40), (1, 1000)))]
    )
    output = SimpleNamespace(kv_connector_metadata=step, total_num_scheduled_tokens=7)
    apply_position_offsets(runner, output)
    assert runner.positions.tolist() == [5, 6, 7, 0, 1, 1042, 109, 99]


def test_a_step_of_plain_requests_is_left_alone():
    output = SimpleNamespace(kv_connector_metadata=StepMetadata())
    apply_position_offsets(SimpleNamespace(), output)
    apply_position_offsets(SimpleNamespace(), SimpleNamespace(kv_connector_metadata=None))
