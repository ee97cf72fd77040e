"""What workers tell of host memory and disk, and when it does not count."""

from __future__ import annotations

import pytest

from tests.core.plans import module, read_module, request, span
from tests.core.test_residency import Engine
from vllm_promptcache.errors import PlanError
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.steps.step import HostMove, WorkerReport

A = module("a", 9)


def moves(engine: Engine) -> list[str]:
    """What the workers are told to do in the next step."""
    told = engine.residency.end_step({}, lambda _: []).moves
    return [move.action for move in told if isinstance(move, HostMove)]


def test_what_a_worker_found_before_it_forgets_all_does_not_count() -> None:
    """The report is of the step before the one that clears: it comes after that was scheduled."""
    engine = Engine(has_disk=True)
    tiers = engine.residency.tiers
    engine.add(request("1", [span(A)], [A]))
    assert engine.prepare() == []
    assert moves(engine) == ["fetch"]
    tiers.forget()
    assert engine.prepare() == []
    assert moves(engine) == ["clear", "fetch"]
    tiers.fetched(WorkerReport([read_module(A)], []))
    assert engine.prepare() == []
    assert moves(engine) == []
    assert engine.residency.store.lookup(A.key) is None
    tiers.fetched(WorkerReport([read_module(A)], [], num_clears=1))
    engine.prepare()
    assert moves(engine)[0] == "restore"


def test_reports_of_two_workers_count_if_both_have_forgotten() -> None:
    first, second = (WorkerReport([], [], num_clears=number) for number in (1, 2))
    assert first.aggregate(second).num_clears == second.aggregate(first).num_clears == 1


def test_a_module_of_another_length_is_not_moved() -> None:
    engine = Engine()
    engine.add(request("1", [span(A)], [A]))
    engine.prepare()
    engine.run_encodes()
    origin = engine.residency.store.lookup(A.key)
    assert origin is not None
    with pytest.raises(PlanError, match="moved"):
        engine.residency.tiers.relocate(origin, b"m" * 32, [Run(0, 12)], 20)
    assert moves(engine) == []
