"""Promotion beside users, in the real scheduler: it takes what they leave, and makes way."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from benchmarks.modelless import ModellessEngine
from tests.core.scheduling import BLOCK_SIZE, start
from tests.families import LLAMA
from tests.generators import random_text

NUM_TOKENS = 3
OURS = "prompt-module-"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, logging_as_before: None) -> Path:
    return LLAMA.save(tmp_path_factory.mktemp("model"))


class Steady:
    """A pace that is always the same."""

    def num_tokens(self, *, is_alone: bool) -> int:
        return 50 if is_alone else NUM_TOKENS

    def took(self, seconds: float, num_tokens: int, *, is_alone: bool) -> None:
        pass


def promoting(model: Path, num_blocks: int = 200, **options: Any) -> ModellessEngine:
    """An engine with four modules that promotes what comes twice."""
    modules = {"repair": "none", "promote_after": 2, "max_promoted_share": 0.5}
    engine = start(model, num_blocks, modules=modules, **options)
    engine.scheduler._background._pace = Steady()
    rng = Random(0)
    documents = "".join(
        f'<module name="d{number}">{random_text(rng, 60)}</module>' for number in range(4)
    )
    engine.front_end.add_schema(f'<schema name="s">{documents}</schema>')
    return engine


def ask(
    engine: ModellessEngine, documents: str = "<d0/><d1/>", max_tokens: int = 1, priority: int = 0
) -> Request:
    pml = f'<prompt schema="s">{documents} What is it?</prompt>'
    return engine.add(pml, max_tokens, priority)


def step(engine: ModellessEngine) -> SchedulerOutput:
    scheduled = engine.schedule()
    engine.update(scheduled, engine.sample(scheduled))
    return scheduled


def finish(engine: ModellessEngine, *requests: Request) -> None:
    while any(request.request_id in engine.scheduler.requests for request in requests):
        step(engine)


def num_for_nobody(scheduled: SchedulerOutput) -> int:
    """Tokens of our own requests in a step."""
    counts = scheduled.num_scheduled_tokens.items()
    return sum(count for request_id, count in counts if request_id.startswith(OURS))


def beside_a_user(engine: ModellessEngine, max_tokens: int = 500) -> Request:
    """Has a combination come twice, beside a user who goes on; steps until a link is encoded."""
    user = ask(engine, "<d3/>", max_tokens)
    for _ in range(2):
        finish(engine, ask(engine))
    for _ in range(5):
        step(engine)
    assert engine.scheduler.residency.encodes.for_nobody is not None
    return user


def test_a_combination_becomes_exact_beside_a_user(model: Path) -> None:
    engine = promoting(model)
    user = beside_a_user(engine)
    stats = engine.scheduler.module_store.stats
    counts = []
    while stats.num_promotions == 0:
        scheduled = step(engine)
        # The user is in each of the steps, and all of them are as short as the pace has it.
        assert scheduled.num_scheduled_tokens[user.request_id] == 1
        counts.append(num_for_nobody(scheduled))
    assert set(counts) <= {0, *range(1, NUM_TOKENS + 1)}
    assert NUM_TOKENS in counts
    assert user.request_id in engine.scheduler.requests
    finish(engine, ask(engine))
    assert stats.num_promoted_requests == 1
    engine.scheduler.check_integrity()


def test_a_prompt_is_computed_without_it(model: Path) -> None:
    engine = promoting(model)
    beside_a_user(engine)
    new = ask(engine, "<d0/><d2/>", max_tokens=4)
    while not new.num_output_tokens:
        scheduled = step(engine)
        ours = engine.scheduler.residency.encodes.for_nobody
        assert ours.request_id not in scheduled.num_scheduled_tokens
    assert num_for_nobody(step(engine)) == NUM_TOKENS


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_users_who_need_its_blocks_get_them_at_once(model: Path, policy: str) -> None:
    engine = promoting(model, scheduling_policy=policy, max_num_batched_tokens=8192)
    beside_a_user(engine)
    ours = engine.scheduler.residency.encodes.for_nobody.request
    manager = engine.scheduler.kv_cache_manager
    while len(manager.get_blocks(ours.request_id).blocks[0]) < 2:
        step(engine)
    # All blocks that are free or its own, but for the next one of the user who runs.
    num_blocks = manager.block_pool.get_num_free_blocks() + 2 - 1
    sizes = [20] * (num_blocks // 20) + [num_blocks % 20]
    new = [
        engine.add_plain([number] * (size * BLOCK_SIZE), 1, priority=9)
        for number, size in enumerate(sizes)
    ]
    assert all(request < ours for request in new)
    scheduled = step(engine)
    assert {request.request_id for request in new} <= scheduled.num_scheduled_tokens.keys()
    assert num_for_nobody(scheduled) == 0
    finish(engine, *new)
    engine.scheduler.check_integrity()


def test_a_seat_is_for_users(model: Path) -> None:
    engine = promoting(model, max_num_seqs=2)
    beside_a_user(engine)
    assert num_for_nobody(step(engine)) == NUM_TOKENS
    new = ask(engine, "<d2/>", max_tokens=9)
    num_steps = 0
    while not new.num_output_tokens:
        step(engine)
        num_steps += 1
    assert num_steps <= 2
    assert engine.scheduler.residency.encodes.for_nobody is None
    finish(engine, new)
    # It is begun again.
    for _ in range(3):
        step(engine)
    assert engine.scheduler.residency.encodes.for_nobody is not None


def test_it_is_the_first_to_be_preempted(model: Path) -> None:
    engine = promoting(model)
    beside_a_user(engine)
    ours = engine.scheduler.residency.encodes.for_nobody.request
    ask(engine, "<d2/>", max_tokens=50)
    for _ in range(3):
        step(engine)
    assert len(engine.scheduler.running) == 3
    assert engine.scheduler.running[-1] is ours


def test_running_users_get_the_last_blocks(model: Path) -> None:
    engine = promoting(model, num_blocks=40)
    user = beside_a_user(engine, max_tokens=700)
    while user.request_id in engine.scheduler.requests:
        step(engine)
        assert user.num_preemptions == 0
    engine.scheduler.check_integrity()


def test_the_last_user_leaves_it_the_engine(model: Path) -> None:
    engine = promoting(model)
    user = beside_a_user(engine)
    engine.abort(user.request_id)
    assert num_for_nobody(step(engine)) == 50
    while engine.scheduler.has_requests():
        step(engine)
    assert engine.scheduler.module_store.stats.num_promotions == 1


def test_the_cache_can_be_reset_while_it_goes_on(model: Path) -> None:
    engine = promoting(model)
    user = beside_a_user(engine)
    engine.abort(user.request_id)
    step(engine)
    assert engine.scheduler.residency.encodes.for_nobody is not None
    assert engine.scheduler.reset_prefix_cache()
    while engine.scheduler.has_requests():
        step(engine)
    engine.scheduler.check_integrity()


def test_without_chunks_it_waits_for_the_last_user(model: Path) -> None:
    engine = promoting(model, enable_chunked_prefill=False)
    user = ask(engine, "<d3/>", 30)
    for _ in range(2):
        finish(engine, ask(engine))
    while user.request_id in engine.scheduler.requests:
        assert num_for_nobody(step(engine)) == 0
    assert num_for_nobody(step(engine)) > 50
    finish(engine, ask(engine, "<d2/>", 3))
    while engine.scheduler.has_requests():
        step(engine)
    assert engine.scheduler.module_store.stats.num_promotions == 1
