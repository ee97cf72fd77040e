"""The divergence of first tokens."""

from __future__ import annotations

import math

import pytest

from vllm_promptcache.quality.first_token import NUM_TOKENS, FirstToken


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
