"""Positions, slots and rows of a step in the inputs of either model runner."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vllm_promptcache.sequence.rows import AttentionRow, AttentionRows
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.steps.step import ObservedRequest, StepMetadata
from vllm_promptcache.worker.attention_rows import RowSplit
from vllm_promptcache.worker.placement import Placement
from vllm_promptcache.worker.runner_inputs import runner_inputs

LENGTHS = {"plain": 2, "other": 2, "modular": 3}
INDEXES = [5, 6, 70, 71, 40, 41, 42]
STALE = 99
TWO = AttentionRows((AttentionRow(1, 0, Run(0, 1), 3), AttentionRow(2, None, Run(0, 2), 8)), ())
OTHERS = AttentionRows((AttentionRow(2, None, Run(0, 3), 9),), ())
ROWS_STEP = StepMetadata(
    # In another order than in the batch.
    position_offsets=[("modular", ((2, -40), (1, 1000))), ("other", ((2, 200),))],
    slot_offsets=[("modular", ((1, -30), (2, 3))), ("other", ((1, 0), (1, -1)))],
    rows=[("modular", TWO), ("other", OTHERS)],
)


class V1:
    """As much of a V1 runner as is read."""

    vllm_config = SimpleNamespace(use_v2_model_runner=False)

    def __init__(self):
        starts = np.cumsum([0, *LENGTHS.values()])
        padded = np.append(starts, starts[-1])
        self.slots = []
        self.positions = torch.tensor([*INDEXES, STALE])
        self.query_start_loc = SimpleNamespace(np=padded, gpu=torch.from_numpy(padded))
        table = SimpleNamespace(compute_slot_mapping=self._compute)
        self.input_batch = SimpleNamespace(req_ids=list(LENGTHS), block_table=table)

    def _compute(self, num_requests, query_start_loc, indexes):
        assert query_start_loc.tolist() == [0, 2, 4, 7]
        assert num_requests == 3
        self.slots.append(indexes.tolist())

    def prepare(self):
        return self

    def model_positions(self):
        return self.positions.tolist()


class V2:
    """As much of a V2 runner and its batch as is read; the batch is padded to one token more."""

    vllm_config = SimpleNamespace(use_v2_model_runner=True)
    device = torch.device("cpu")
    max_num_tokens = 16

    def __init__(self):
        self.slots = []
        self.block_tables = SimpleNamespace(compute_slot_mappings=self._compute)
        self.model_state = SimpleNamespace(
            prepare_inputs=lambda batch, states: {"more": 1},
            prepare_dummy_inputs=lambda num_reqs, num_tokens: {"more": 2},
        )

    def _compute(self, idx_mapping, query_start_loc, indexes, num_tokens_padded):
        assert (idx_mapping, query_start_loc, num_tokens_padded) == ("mapping", "starts", 8)
        self.slots.append(indexes.tolist())

    def prepare(self):
        self.batch = SimpleNamespace(
            req_ids=list(LENGTHS),
            # Padded, as for a full graph.
            query_start_loc_np=np.array([0, 2, 4, 7, 7, 7], np.int32),
            query_start_loc="starts",
            idx_mapping="mapping",
            positions=torch.tensor([*INDEXES, STALE]),
            num_tokens_after_padding=8,
        )
        return self.batch

    def model_positions(self):
        inputs = self.model_state.prepare_inputs(self.batch, None)
        assert inputs["more"] == 1
        # The sampler reads these.
        assert self.batch.positions.tolist() == [*INDEXES, STALE]
        return inputs["positions"].tolist()


@pytest.fixture(params=[V1, V2])
def runner(request):
    return request.param()


def test_slots_come_from_indexes_and_positions_follow(runner):
    placement = Placement(runner_inputs(runner))
    placement.begin(ROWS_STEP)
    placement.place(runner.prepare())
    assert runner.slots == [[5, 6, 70, 70, 10, 44, 45]]
    assert runner.model_positions() == [5, 6, 270, 271, 0, 1, 1042, STALE]
    assert placement.split == RowSplit({2: TWO, 1: OTHERS})
    placement.end()
    assert placement.split is None


def test_slots_are_left_alone_where_positions_alone_differ(runner):
    placement = Placement(runner_inputs(runner))
    placement.begin(StepMetadata(position_offsets=[("plain", ((2, 10),))]))
    placement.place(runner.prepare())
    assert runner.slots == []
    assert runner.model_positions() == [15, 16, *INDEXES[2:], STALE]
    assert placement.split is None


def test_a_plain_step_is_left_alone(runner):
    placement = Placement(runner_inputs(runner))
    placement.begin(StepMetadata())
    placement.place(runner.prepare())
    assert runner.slots == []
    assert runner.model_positions() == [*INDEXES, STALE]


def test_the_last_tokens_of_probes_are_found(runner):
    placement, slots = Placement(runner_inputs(runner)), np.arange(9)
    placement.begin(StepMetadata(observed=[ObservedRequest("modular", 2, slots)]))
    (observed,) = placement.place(runner.prepare()).observed(placement.step.observed)
    assert (observed.request_id, observed.rows) == ("modular", range(5, 7))
    assert observed.slots is slots


def test_v2_gives_the_model_one_buffer_whatever_is_placed():
    """CUDA graphs are captured with its address."""
    runner = V2()
    placement = Placement(runner_inputs(runner))
    dummies = runner.model_state.prepare_dummy_inputs(1, 4)
    assert dummies["more"] == 2
    assert dummies["positions"].tolist() == [0, 0, 0, 0]
    placement.begin(ROWS_STEP)
    batch = runner.prepare()
    placement.place(batch)
    inputs = runner.model_state.prepare_inputs(batch, None)
    assert inputs["positions"].data_ptr() == dummies["positions"].data_ptr()
    # A batch of vLLM's own, to warm up: nothing of the step before is added to it.
    assert runner.model_positions() == [*INDEXES, STALE]


@pytest.mark.parametrize(
    ("step", "is_regular"),
    [
        (StepMetadata(), True),
        (StepMetadata(position_offsets=[("plain", ((2, 10),))]), True),
        (ROWS_STEP, False),
        (StepMetadata(observed=[ObservedRequest("modular", 1, np.arange(3))]), False),
    ],
)
def test_a_step_with_rows_or_a_probe_is_no_regular_one(step, is_regular):
    placement = Placement(runner_inputs(V1()))
    placement.begin(step)
    assert placement.is_regular == is_regular
    placement.end()
    assert placement.is_regular
