"""Bootstrap intervals, and the divergence of first tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vllm_promptcache.evaluate.bootstrap import Estimate, estimate
from vllm_promptcache.first_token import NUM_TOKENS, FirstToken


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


def test_divergence_counts_all_other_tokens_as_one() -> None:
    plain = FirstToken.of({7: math.log(0.5), 3: math.log(0.25)})
    assert plain.token_ids == (7, 3)
    other = {7: math.log(0.25), 3: math.log(0.25), 9: math.log(0.4)}
    # Rests are 0.25 and 0.5.
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert plain.divergence(other) == pytest.approx(expected)


def test_divergence_from_itself_is_none() -> None:
    logprobs = {token_id: -0.7 * (token_id + 1) for token_id in range(NUM_TOKENS + 20)}
    plain = FirstToken.of(logprobs)
    assert plain.token_ids == tuple(range(NUM_TOKENS))
    assert plain.divergence(logprobs) == 0


def test_no_probability_left_is_no_error() -> None:
    plain = FirstToken.of({1: 0.0})
    assert plain.divergence({1: 0.0}) == 0
    assert plain.divergence({1: math.log(0.5)}) == pytest.approx(math.log(2), abs=1e-4)
