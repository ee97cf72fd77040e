"""Bootstrap intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vllm_promptcache.quality.evaluate.bootstrap import Estimate, estimate


def test_an_interval_is_about_that_of_a_normal_mean() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 400).tolist()
    found = estimate(values)
    half = 1.96 * np.std(values) / math.sqrt(400)
    assert found.value == pytest.approx(np.mean(values))
    assert found.low == pytest.approx(found.value - half, abs=0.02)
    assert found.high == pytest.approx(found.value + half, abs=0.02)


def test_figures_of_the_same_rows_are_paired() -> None:
    values = [1.0, 5.0, 2.0, 8.0]
    first, second = estimate(values), estimate([value + 3 for value in values])
    assert first.low is not None
    assert second.low == pytest.approx(first.low + 3)


def test_a_median_has_an_interval_and_one_row_has_none() -> None:
    found = estimate([1.0, 2.0, 300.0], np.median)
    assert found == Estimate(2.0, 1.0, 300.0)
    assert estimate([4.0]) == Estimate(4.0, None, None)
