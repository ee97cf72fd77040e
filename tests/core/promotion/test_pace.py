"""How many tokens go beside users, on machines of several kinds."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from vllm_promptcache.core.promotion.pace import ALONE_S, SHARE, Pace

MAX_NUM_TOKENS = 2048
USUAL_S = 0.1

Machine = Callable[[int], float]


def on_a_cpu(num_tokens: int) -> float:
    """Seconds of a step with so many tokens more: each of them counts."""
    return USUAL_S + 0.001 * num_tokens


def on_a_gpu(num_tokens: int) -> float:
    return USUAL_S + max(num_tokens - 500, 0) * 0.0001


def with_a_first_cost(num_tokens: int) -> float:
    return USUAL_S * (1.3 if num_tokens else 1) + 0.00001 * num_tokens


def on_a_slow_cpu(num_tokens: int) -> float:
    return USUAL_S + 0.02 * num_tokens


def run(pace: Pace, machine: Machine, num_steps: int, noise: float = 0.0) -> list[int]:
    """Tokens of each step beside users."""
    rng, taken = Random(0), []
    for _ in range(num_steps):
        num_tokens = pace.num_tokens(is_alone=False)
        seconds = machine(num_tokens) * (1 + rng.uniform(-noise, noise))
        pace.took(seconds, num_tokens, is_alone=False)
        taken.append(num_tokens)
    return taken


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("min_num_tokens", [1, 64])
@pytest.mark.parametrize("machine", [on_a_cpu, on_a_gpu, with_a_first_cost, on_a_slow_cpu])
def test_users_lose_no_more_than_their_share(
    machine: Machine, min_num_tokens: int, noise: float
) -> None:
    pace = Pace(min_num_tokens=min_num_tokens, max_num_tokens=MAX_NUM_TOKENS)
    taken = run(pace, machine, 4000, noise)[1000:]
    extra_s = sum(machine(num_tokens) - USUAL_S for num_tokens in taken)
    # What is begun is paid back later; noise is believed in part.
    assert extra_s / (len(taken) * USUAL_S) <= SHARE * (1.1 if noise == 0 else 1.5)
    assert sum(taken) > 0


def test_where_each_token_counts_no_step_takes_much_longer() -> None:
    pace = Pace(min_num_tokens=1, max_num_tokens=MAX_NUM_TOKENS)
    taken = run(pace, on_a_cpu, 1000)[100:]
    assert max(taken) * 0.001 <= SHARE * USUAL_S
    assert sum(taken) >= len(taken) * 2


def test_where_tokens_are_free_there_are_many() -> None:
    pace = Pace(min_num_tokens=64, max_num_tokens=MAX_NUM_TOKENS)
    taken = run(pace, on_a_gpu, 1000)[100:]
    assert sum(taken) >= len(taken) * 250


def test_nothing_goes_beside_users_before_it_is_known_how_long_their_steps_take() -> None:
    pace = Pace(min_num_tokens=1, max_num_tokens=MAX_NUM_TOKENS)
    assert [pace.num_tokens(is_alone=False) for _ in range(10)] == [0] * 10


@pytest.mark.parametrize(("per_token_s", "expected"), [(0.001, 32), (0.00001, 2048), (0.1, 16)])
def test_a_step_without_users_is_short(per_token_s: float, expected: int) -> None:
    pace = Pace(min_num_tokens=1, max_num_tokens=MAX_NUM_TOKENS)
    for _ in range(20):
        num_tokens = pace.num_tokens(is_alone=True)
        pace.took(num_tokens * per_token_s, num_tokens, is_alone=True)
    assert pace.num_tokens(is_alone=True) == expected
    assert expected == 16 or expected * per_token_s <= ALONE_S
