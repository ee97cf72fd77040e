"""Limits that hold, that do not, and that the rows do not tell of."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vllm_promptcache.quality.calibrate.decision import (
    Decision,
    decide,
    num_more_rows,
    verdict_of,
)
from vllm_promptcache.quality.evaluate.bootstrap import Estimate, estimate
from vllm_promptcache.quality.profile import VerdictName


def around(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half)


@pytest.mark.parametrize(
    ("found", "verdict", "num_rows"),
    [
        (around(0.0, 1.0), "passes", 100),
        (around(0.5, 1.0), "undecided", 400),
        (around(1.5, 1.0), "undecided", 400),
        (around(2.0, 1.0), "undecided", 100),
        (around(2.5, 1.0), "fails", 100),
        (around(1.0, 1.0), "undecided", math.inf),
        (around(1.0, 0.0), "passes", 0),
        (Estimate(0.0, None, None), "undecided", math.inf),
    ],
)
def test_an_interval_is_compared_with_a_limit(
    found: Estimate, verdict: VerdictName, num_rows: float
) -> None:
    decision = decide(found, 1.0, 100)
    assert (decision.verdict, decision.num_rows) == (verdict, num_rows)


def test_rows_that_are_all_alike_are_not_taken_for_certain() -> None:
    alike = estimate([0.0] * 120)
    assert decide(alike, 1.0, 120).verdict == "passes"
    assert decide(alike, 1.0, 120, worst=100.0) == Decision("undecided", 300.0, seems_above=False)
    assert decide(estimate([0.0] * 300), 1.0, 300, worst=100.0).verdict == "passes"
    assert decide(alike, 0.0, 120, worst=100.0).num_rows == math.inf


def test_as_many_rows_as_were_told_decide() -> None:
    values = np.tile([-4.0, 0.0, 0.0, 0.0, 5.0], 10)
    first = decide(estimate(values.tolist()), 0.5, 50)
    assert first.verdict == "undecided"
    times = round(first.num_rows / 50)
    many = estimate(np.tile(values, times + 1).tolist())
    assert decide(many, 0.5, 50 * (times + 1)).verdict == "passes"
    few = estimate(np.tile(values, times - 1).tolist())
    assert decide(few, 0.5, 50 * (times - 1)).verdict == "undecided"


UNSURE = Decision("undecided", 400, seems_above=False)
PASSED = Decision("passes", 20, seems_above=False)


@pytest.mark.parametrize(
    ("others", "verdict", "more"),
    [
        ([PASSED], "undecided", 300),
        ([Decision("undecided", 1000.2, seems_above=False)], "undecided", 901),
        # The first limit that is found not to hold decides.
        ([Decision("undecided", 150, seems_above=True)], "undecided", 50),
        ([Decision("undecided", math.inf, seems_above=False)], "undecided", None),
        ([Decision("fails", 100, seems_above=True)], "fails", None),
    ],
)
def test_all_limits_are_to_hold(
    others: list[Decision], verdict: VerdictName, more: int | None
) -> None:
    decisions = [UNSURE, *others]
    assert verdict_of(decisions) == verdict
    assert num_more_rows(decisions, 100) == more


def test_where_all_is_decided_no_rows_are_asked_for() -> None:
    assert verdict_of([PASSED, PASSED]) == "passes"
    assert num_more_rows([PASSED], 100) is None
