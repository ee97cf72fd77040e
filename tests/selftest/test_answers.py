"""How far answers are apart."""

import pytest

from vllm_promptcache.selftest.answers import Distance

ONE = ((5, -0.5), (6, -1.0), (7, -2.0))
NEAR = ((5, -0.4), (6, -1.0), (7, -2.0))
OTHER = ((5, -0.5), (9, -1.5), (8, -9.0))


def test_answers_with_the_same_tokens_are_compared_to_their_end():
    found = Distance.between([ONE, ONE], [ONE, NEAR])
    assert found.mean == pytest.approx(0.1 / 6)
    assert found.largest == pytest.approx(0.1)
    assert (found.num_equal, found.num_answers) == (2, 2)


def test_others_up_to_the_first_token_that_differs():
    found = Distance.between([ONE], [OTHER])
    assert (found.mean, found.largest, found.num_equal) == (0.25, 0.5, 0)


def test_what_is_within_three_times_the_noise_is_rounding():
    noise, near = Distance(0.01, 1, 1, 1), Distance(0.029, 1, 1, 1)
    assert near.is_within(noise, 0)
    assert not Distance(0.031, 0, 1, 1).is_within(noise, 0)
    assert Distance(0.031, 0, 1, 1).is_within(noise, 0.002)
