"""Steps that are scheduled before the ones before them have been computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm.config import KVTransferConfig

from benchmarks.modelless import ModellessEngine
from tests.async_scheduling import asynchronous_scheduling
from tests.families import LLAMA
from vllm_promptcache.entrypoints.pinning import engine_pins
from vllm_promptcache.pml import Pin
from vllm_promptcache.store import PIN_OWNER, PinnedModule

from .scheduling import BLOCK_SIZE, start

NUM_BLOCKS = 20
SCHEMA = f'<schema name="s"><module name="m">{"Some text. " * 20}</module></schema>'
PML = '<prompt schema="s"><m/>What?</prompt>'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return LLAMA.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _is_asynchronous() -> Iterator[None]:
    with asynchronous_scheduling():
        yield


def new_engine(model: Path, **engine_args: Any) -> ModellessEngine:
    engine = start(model, NUM_BLOCKS, modules={"repair": "none"}, **engine_args)
    engine.front_end.add_schema(SCHEMA)
    return engine


def run(engine: ModellessEngine) -> None:
    while engine.scheduler.requests:
        engine.step()
        engine.scheduler.check_integrity()


def test_blocks_are_free_while_a_step_that_writes_them_is_in_flight(model: Path) -> None:
    engine = new_engine(model)
    request = engine.add_plain([7] * BLOCK_SIZE, 9)
    scheduled = engine.schedule()
    assert engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    engine.update(scheduled, engine.sample(scheduled))
    run(engine)
    assert request.num_output_tokens == 9


def test_a_preempted_request_gets_what_it_generated_last(model: Path) -> None:
    engine = new_engine(model)
    request = engine.add_plain([7] * BLOCK_SIZE, 9)
    scheduled = engine.schedule()
    answer = engine.sample(scheduled)
    preempt(engine, request)
    engine.update(scheduled, answer)
    assert request.num_output_tokens == 1
    run(engine)
    assert request.num_output_tokens == 9


def test_an_encode_that_is_preempted_at_its_end_goes_on(model: Path) -> None:
    engine = new_engine(model)
    engine.add(PML, 1)
    scheduled = engine.schedule()
    answer = engine.sample(scheduled)
    (encode,) = engine.scheduler.running
    preempt(engine, encode)
    assert not engine.update(scheduled, answer).get(0)
    assert not engine.scheduler.module_store
    assert encode.request_id in engine.scheduler.requests
    run(engine)
    assert engine.scheduler.residency.encodes.num_started == 1
    assert len(engine.scheduler.module_store) == 1


def preempt(engine: ModellessEngine, request: Any) -> None:
    engine.scheduler.running.remove(request)
    engine.scheduler._preempt_request(request, 0.0, engine.scheduler.requires_kv_delivery)


def test_pins_do_not_give_way_for_blocks_that_come_back(model: Path, tmp_path: Path) -> None:
    foreign = KVTransferConfig(
        kv_connector="ExampleConnector",
        kv_role="kv_both",
        kv_connector_extra_config={"shared_storage_path": str(tmp_path)},
    )
    engine = new_engine(model, kv_transfer_config=foreign)
    scheduler, residency = engine.scheduler, engine.scheduler.residency
    layout = engine.front_end.planner.schemas.get("s").layout
    pins = engine_pins(layout, BLOCK_SIZE, Pin())
    residency.pins.replace("s", [PinnedModule(*pin) for pin in pins])
    engine.add(PML, 1)
    run(engine)
    pinned = set(residency.store.held(PIN_OWNER))
    assert pinned
    num_free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    first = engine.add_plain([7] * num_free * BLOCK_SIZE, 1)
    scheduled = engine.schedule()
    answer = engine.sample(scheduled)
    engine.abort(first.request_id)
    engine.add_plain([8] * BLOCK_SIZE, 1)
    assert engine.schedule().total_num_scheduled_tokens == 0
    scheduler.check_integrity()
    engine.update(scheduled, answer)
    assert residency.store.held(PIN_OWNER) == pinned
    run(engine)
    assert residency.store.held(PIN_OWNER) == pinned
