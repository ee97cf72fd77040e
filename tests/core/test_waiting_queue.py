"""Behind a request that waits for room, vLLM does not look at each that comes later."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families import LLAMA

from .scheduling import BLOCK_SIZE, start

NUM_BLOCKS = 20
NUM_WAITING = 200
SCHEMA = '<schema name="s"><module name="m">Some text that all of them read.</module></schema>'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return LLAMA.save(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_a_step_looks_at_few_of_many_that_wait(
    model: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(model, NUM_BLOCKS, modules={"repair": "none"}, scheduling_policy=policy)
    engine.front_end.add_schema(SCHEMA)
    scheduler, looked_at = engine.scheduler, []
    handle = type(scheduler)._handle_blocked_waiting_request

    def counted(self, request):
        looked_at.append(request.request_id)
        return handle(self, request)

    monkeypatch.setattr(type(scheduler), "_handle_blocked_waiting_request", counted)
    # It takes the cache but for a few blocks.
    large = engine.add_plain([7] * (NUM_BLOCKS - 4) * BLOCK_SIZE, 3)
    engine.step()
    pml = f'<prompt schema="s"><m/>{"What? " * 100}</prompt>'
    waiting = [engine.add(pml, 1) for _ in range(NUM_WAITING)]
    limit = scheduler.max_num_active_reqs
    looked_at.clear()
    engine.step()
    assert looked_at == [waiting[0].request_id]
    assert [r.request_id for r in scheduler.waiting] == [r.request_id for r in waiting]
    assert scheduler.max_num_active_reqs == limit
    scheduler.check_integrity()
    while large.request_id in scheduler.requests:
        engine.step()
    served = []
    while scheduler.requests:
        served += [output.request_id for output in engine.step()[0]]
        scheduler.check_integrity()
    assert served == [r.request_id for r in waiting]
