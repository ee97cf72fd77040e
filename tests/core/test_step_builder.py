"""What workers are told of running requests, and when."""

import pytest
from vllm.v1.request import RequestStatus

from vllm_promptcache.sequence.runs import Run

from .plans import BLOCK_SIZE, module, placed, plan, planned_request, span
from .test_residency import Engine

A = module("a", 2 * BLOCK_SIZE)
FIRST = A.num_kept_tokens
RUNS = (Run(100, 2), Run(200, 3))


def resident_module():
    """An engine with module A, and a request that reads it and computes five tokens."""
    engine = Engine()
    user = planned_request("1", plan(placed([span(A)]), [A], RUNS))
    engine.add(user)
    engine.prepare()
    engine.run_encodes()
    return engine, user


def admit(engine, request):
    modular = engine.residency.get(request)
    engine.residency.admit(request, [block.block_id for block in engine.residency.map(modular)])


def told(engine, request, start, num_tokens):
    """Offsets that workers are told when a request computes some tokens."""
    request.num_computed_tokens = start
    step = engine.residency.end_step({request.request_id: num_tokens}, lambda _: [])
    return step.position_offsets


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([(0, 5), (5, 1), (6, 1)], [((2, 92), (3, 190)), None, None]),
        ([(0, 2), (2, 1), (3, 2), (5, 1)], [((2, 92),), ((1, 190),), None, None]),
        ([(0, 1), (1, 1), (2, 3)], [((1, 92),), ((1, 92),), ((3, 190),)]),
    ],
)
def test_offsets_are_told_until_the_last_run_is_reached(chunks, expected):
    engine, user = resident_module()
    admit(engine, user)
    for (start, num_tokens), offsets in zip(chunks, expected, strict=True):
        found = told(engine, user, FIRST + start, num_tokens)
        assert found == ([] if offsets is None else [("1", offsets)])


def test_a_request_that_was_preempted_is_told_of_again():
    engine, user = resident_module()
    for _ in range(2):
        admit(engine, user)
        assert told(engine, user, FIRST, 5)
        assert not told(engine, user, FIRST + 5, 1)
        engine.residency.preempted(user)


def test_a_request_that_is_not_scheduled_yet_is_told_of_when_it_is():
    engine, user = resident_module()
    admit(engine, user)
    assert not engine.residency.end_step({"other": 1}, lambda _: []).position_offsets
    assert told(engine, user, FIRST, 5)


def test_workers_are_told_once_that_a_request_has_ended():
    engine, user = resident_module()
    admit(engine, user)
    # The encode has ended before.
    assert "1" not in engine.residency.end_step({}, lambda _: []).ended
    user.status = RequestStatus.FINISHED_ABORTED
    engine.residency.finish(user, [])
    assert engine.residency.end_step({}, lambda _: []).ended == ["1"]
    assert engine.residency.end_step({}, lambda _: []).ended == []
