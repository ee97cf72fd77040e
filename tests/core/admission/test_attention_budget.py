"""No step has more rows of attention than the engine takes, and every request gets its turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from tests.core.plans import BLOCK_SIZE
from tests.core.test_private_blocks import Residency
from vllm_promptcache.core.admission.attention_budget import AttentionBudget
from vllm_promptcache.core.residency import ModuleResidency

MAX_ROWS = 8


@dataclass(eq=False)
class FakeRequest:
    """A request whose inner tokens are groups; it ends when all of its tokens are computed.

    Attributes:
        groups: Lengths of its groups of inner tokens.
        num_last: Tokens behind them, generated ones among them.
    """

    request_id: str
    groups: list[int]
    num_last: int
    num_computed_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return sum(self.groups) + self.num_last

    def rows(self, start: int, num_tokens: int) -> int:
        """Rows that some of its tokens take in one step."""
        end, at, num = start + num_tokens, 0, 0
        for length in (*self.groups, self.num_last):
            num += max(start, at) < min(end, at + length)
            at += length
        return num

    def max_num_rows(self, start: int) -> int:
        return max(1, self.rows(start, self.num_tokens - start))


@dataclass
class FakeScheduler:
    """Schedules as vLLM does: running requests first, then waiting ones that fit."""

    budget: AttentionBudget
    waiting: list[FakeRequest]
    max_tokens: int
    running: list[Any] = field(default_factory=list)
    num_rows: list[int] = field(default_factory=list)

    def step(self) -> None:
        limit = self.budget.start_step(self.running)
        left = self.max_tokens if limit is None else min(limit, self.max_tokens)
        scheduled = {}
        for request in self.running:
            num = min(left, self._wanted(request))
            left -= num
            scheduled[request] = num
        for request in list(self.waiting):
            if not left or len(self.running) >= MAX_ROWS:
                break
            if self.budget.fits(request, self.running):  # type: ignore[arg-type]
                self.waiting.remove(request)
                self.running.append(request)
                scheduled[request] = num = min(left, self._wanted(request))
                left -= num
        self.num_rows.append(
            sum(
                request.rows(request.num_computed_tokens, num) for request, num in scheduled.items()
            )
        )
        for request, num in scheduled.items():
            request.num_computed_tokens += num
            if request.num_computed_tokens == request.num_tokens:
                self.running.remove(request)

    @staticmethod
    def _wanted(request: FakeRequest) -> int:
        rest = request.num_tokens - request.num_computed_tokens
        # What is generated comes one by one.
        return 1 if rest <= request.num_last // 2 else rest - request.num_last // 2


def budget(*, is_chunked: bool = True) -> AttentionBudget:
    return AttentionBudget(
        MAX_ROWS,
        lambda request: (
            SimpleNamespace(table=SimpleNamespace(inner=request)) if request.groups else None
        ),  # type: ignore
        is_chunked=is_chunked,
    )


def requests(rng: Random, max_groups: int) -> list[FakeRequest]:
    return [
        FakeRequest(
            str(number),
            [rng.randint(1, 3) for _ in range(rng.choice((0, 0, 1, 3, max_groups)))],
            rng.randint(2, 12),
        )
        for number in range(30)
    ]


@pytest.mark.parametrize("max_tokens", [10, 64, 1000])
@pytest.mark.parametrize("seed", range(20))
def test_steps_have_no_more_rows_than_there_may_be(seed: int, max_tokens: int) -> None:
    waiting = requests(Random(seed), max_groups=40)
    scheduler = FakeScheduler(budget(), waiting, max_tokens)
    for _ in range(5_000):
        scheduler.step()
        if not (scheduler.waiting or scheduler.running):
            break
    else:
        pytest.fail("a request waits for ever")
    assert max(scheduler.num_rows) <= MAX_ROWS
    # Rows are there to be used.
    assert max(scheduler.num_rows) > MAX_ROWS / 2


@pytest.mark.parametrize("seed", range(10))
def test_without_chunks_steps_keep_their_tokens(seed: int) -> None:
    waiting = requests(Random(seed), max_groups=MAX_ROWS - 1)
    scheduler = FakeScheduler(budget(is_chunked=False), waiting, 1000)
    for _ in range(5_000):
        assert scheduler.budget.start_step(scheduler.running) is None
        scheduler.step()
        if not (scheduler.waiting or scheduler.running):
            break
    else:
        pytest.fail("a request waits for ever")
    assert max(scheduler.num_rows) <= MAX_ROWS


def test_plain_requests_are_never_held_back() -> None:
    plain = [FakeRequest(str(number), [], 4) for number in range(MAX_ROWS)]
    held = budget()
    assert held.start_step(plain[:3]) is None  # type: ignore[arg-type]
    for number in range(3, MAX_ROWS):
        assert held.fits(plain[number], plain[:number])  # type: ignore[arg-type]


def test_nobody_passes_a_request_that_waits_for_rows() -> None:
    many, plain = FakeRequest("many", [1] * 6, 2), FakeRequest("plain", [], 2)
    running = [FakeRequest(str(number), [1, 1], 2) for number in range(2)]
    held = budget()
    assert held.start_step([]) is None
    assert all(held.fits(request, running[:i]) for i, request in enumerate(running))  # type: ignore
    assert held.start_step(running) is None  # type: ignore[arg-type]
    assert not held.fits(many, running)  # type: ignore[arg-type]
    assert not held.fits(plain, running)  # type: ignore[arg-type]
    # Once the others have a row each it takes several steps: 9 rows never fit.
    assert held.start_step(running) == MAX_ROWS  # type: ignore[arg-type]
    assert held.fits(many, running)  # type: ignore[arg-type]


def test_too_many_rows_for_an_engine_without_chunks_end_the_request() -> None:
    engine = Residency()
    residency = ModuleResidency(engine.pool, BLOCK_SIZE, max_rows=2)
    request = Residency.request("1")
    residency.add(request)
    assert residency.rejected == {
        "1": "the prompt takes 3 rows of attention, the engine 2 (max_num_seqs), and chunked "
        "prefill is off"
    }
    assert residency.get(request) is None
    enough = ModuleResidency(engine.pool, BLOCK_SIZE, max_rows=3)
    enough.add(Residency.request("1"))
    assert not enough.rejected
