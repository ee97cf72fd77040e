"""Positions and slots of a step."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vllm_promptcache.sequence.rows import AttentionRow, AttentionRows
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.steps.step import StepMetadata
from vllm_promptcache.worker.attention_rows import RowSplit
from vllm_promptcache.worker.positions import place_tokens


def test_offsets_are_added_to_the_tokens_of_their_requests_only():
    runner = SimpleNamespace(
        positions=torch.tensor([5, 6, 7, 40, 41, 42, 9, 99]),
        query_start_loc=SimpleNamespace(np=np.array([0, 3, 6, 7])),
        input_batch=SimpleNamespace(req_id_to_index={"plain": 0, "modular": 1, "decode": 2}),
    )
    step = StepMetadata(
        position_offsets=[("decode", ((1, 100),)), ("modular", ((2, -40), (1, 1000)))]
    )
    assert place_tokens(runner, step) is None
    assert runner.positions.tolist() == [5, 6, 7, 0, 1, 1042, 109, 99]


def test_a_step_of_plain_requests_is_left_alone():
    assert place_tokens(SimpleNamespace(), StepMetadata()) is None


def test_slots_come_from_indexes_and_positions_follow():
    calls = []

    def compute_slot_mapping(num_requests, query_start_loc, indexes):
        calls.append((num_requests, query_start_loc.tolist(), indexes.tolist()))

    # In another order than in the batch.
    numbers = {"modular": 2, "plain": 0, "other": 1}
    starts = [0, 2, 4, 7, 7]
    runner = SimpleNamespace(
        positions=torch.tensor([5, 6, 70, 71, 40, 41, 42, 99]),
        query_start_loc=SimpleNamespace(np=np.array(starts), gpu=torch.tensor(starts)),
        input_batch=SimpleNamespace(
            req_id_to_index=numbers,
            block_table=SimpleNamespace(compute_slot_mapping=compute_slot_mapping),
        ),
    )
    two = (AttentionRow(1, 0, Run(0, 1), 3), AttentionRow(2, None, Run(0, 2), 8))
    rows = AttentionRows(two, ())
    others = AttentionRows((AttentionRow(2, None, Run(0, 3), 9),), ())
    step = StepMetadata(
        position_offsets=[("modular", ((2, -40), (1, 1000))), ("other", ((2, 200),))],
        slot_offsets=[("modular", ((1, -30), (2, 3))), ("other", ((1, 0), (1, -1)))],
        rows=[("modular", rows), ("other", others)],
    )
    split = place_tokens(runner, step)
    assert calls == [(3, [0, 2, 4, 7], [5, 6, 70, 70, 10, 44, 45])]
    assert runner.positions.tolist() == [5, 6, 270, 271, 0, 1, 1042, 99]
    assert split == RowSplit({2: rows, 1: others})


def test_slots_are_left_alone_where_positions_alone_differ():
    def compute_slot_mapping(*_):
        pytest.fail("vLLM's slots are right")

    runner = SimpleNamespace(
        positions=torch.tensor([5, 6]),
        query_start_loc=SimpleNamespace(np=np.array([0, 2])),
        input_batch=SimpleNamespace(
            req_id_to_index={"modular": 0},
            block_table=SimpleNamespace(compute_slot_mapping=compute_slot_mapping),
        ),
    )
    step = StepMetadata(position_offsets=[("modular", ((2, 10),))])
    assert place_tokens(runner, step) is None
    assert runner.positions.tolist() == [15, 16]
