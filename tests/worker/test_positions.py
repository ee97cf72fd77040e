"""Positions and slots of a step."""

from random import Random

import numpy as np
import torch

from vllm_promptcache.sequence.offsets import IndexOffsets
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.steps.step import StepMetadata
from vllm_promptcache.worker.positions import Positions
from vllm_promptcache.worker.step_batch import StepBatch

CPU = torch.device("cpu")


def place(positions, step, indexes, lengths):
    """Positions that a step's tokens get; `lengths` has by id how many a request computes."""
    batch = StepBatch(list(lengths), np.cumsum([0, *lengths.values()]))
    positions.begin(step)
    offsets = positions.offsets(batch, step, CPU)
    placed = torch.tensor(indexes)
    if offsets is not None:
        placed[: batch.num_tokens] += offsets
    return placed.tolist()


def end(positions, request_ids):
    positions.begin(StepMetadata(ended=list(request_ids)))


def test_offsets_are_added_to_the_tokens_of_their_requests_only():
    step = StepMetadata(
        position_offsets=[("decode", ((1, 100),)), ("modular", ((2, -40), (1, 1000)))]
    )
    placed = place(
        Positions(), step, [5, 6, 7, 40, 41, 42, 9, 99], {"plain": 3, "modular": 3, "decode": 1}
    )
    assert placed == [5, 6, 7, 0, 1, 1042, 109, 99]


def test_a_step_of_plain_requests_is_left_alone():
    assert Positions().offsets(StepBatch(["a"], np.array([0, 1])), StepMetadata(), CPU) is None


def test_what_was_told_once_goes_on_wherever_the_request_is_in_the_batch():
    positions = Positions()
    step = StepMetadata(position_offsets=[("a", ((2, 5), (1, 10))), ("b", ((1, 20),))])
    assert place(positions, step, [0, 1, 2, 0], {"a": 3, "b": 1}) == [5, 6, 12, 20]
    nothing = StepMetadata()
    assert place(positions, nothing, [3, 1], {"a": 1, "b": 1}) == [13, 21]
    # Once more: the batch is the same.
    assert place(positions, nothing, [4, 2], {"a": 1, "b": 1}) == [14, 22]
    assert place(positions, nothing, [3, 7, 5], {"b": 1, "c": 1, "a": 1}) == [23, 7, 15]
    # Not in a step, and beside a prefill.
    assert place(positions, nothing, [4], {"b": 1}) == [24]
    assert place(positions, nothing, [0, 1, 6, 5], {"d": 2, "a": 1, "b": 1}) == [0, 1, 16, 25]


def test_a_resumed_request_is_told_anew_and_an_ended_one_is_forgotten():
    positions = Positions()
    place(positions, StepMetadata(position_offsets=[("a", ((1, 10),))]), [0], {"a": 1})
    resumed = StepMetadata(position_offsets=[("a", ((2, 3), (1, 30)))])
    assert place(positions, resumed, [0, 1, 2], {"a": 3}) == [3, 4, 32]
    assert place(positions, StepMetadata(), [3], {"a": 1}) == [33]
    end(positions, ["a", "unknown"])
    # Another request of the same id, without modules.
    assert place(positions, StepMetadata(), [3], {"a": 1}) == [3]


def test_one_that_has_ended_may_begin_anew_in_the_same_step():
    positions = Positions()
    place(positions, StepMetadata(position_offsets=[("a", ((1, 10),))]), [0], {"a": 1})
    step = StepMetadata(ended=["a"], position_offsets=[("a", ((1, 20),))])
    assert place(positions, step, [0], {"a": 1}) == [20]
    assert place(positions, StepMetadata(), [1], {"a": 1}) == [21]


def test_any_mix_of_requests_has_the_positions_of_its_own_runs():
    """Against the offsets of all tokens: chunks, batches in any order, requests that pause."""
    rng, positions = Random(0), Positions()
    live, told = {}, {}
    for number in range(400):
        if rng.random() < 0.3:
            runs = [Run(1000 * i + rng.randrange(900), rng.randint(1, 5)) for i in range(3)]
            live[f"r{number}"] = [IndexOffsets.of(7, runs[: rng.randint(1, 3)]), 7]
        if rng.random() < 0.2:
            live[f"plain{number}"] = [None, 0]
        ended = [i for i in live if rng.random() < 0.03]
        for request_id in ended:
            del live[request_id]
            told.pop(request_id, None)
        end(positions, ended)
        batch = rng.sample(sorted(live), rng.randint(0, len(live)))
        if not batch:
            continue
        step, lengths, indexes, expected = StepMetadata(), {}, [], []
        for request_id in batch:
            offsets, at = live[request_id]
            is_told = told.get(request_id, False)
            lengths[request_id] = num = 1 if is_told else rng.randint(1, 4)
            slices = ((num, 0),) if offsets is None else offsets.slices(at, num)
            if offsets is not None and not is_told:
                step.position_offsets.append((request_id, slices))
                told[request_id] = at + num > offsets.starts[-1]
            indexes += range(at, at + num)
            added = [offset for length, offset in slices for _ in range(length)]
            expected += [i + offset for i, offset in zip(range(at, at + num), added, strict=True)]
            live[request_id][1] += num
        rng.shuffle(step.position_offsets)
        assert place(positions, step, indexes, lengths) == expected
