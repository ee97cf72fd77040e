"""Siblings come back into blocks that hold nothing, and only from where they are."""

import pytest

from tests.core.plans import module, read_module, request, span
from tests.core.test_residency import Engine
from vllm_promptcache.steps.step import WorkerReport

A, B = module("a", 9), module("b", 6)


@pytest.fixture
def engine():
    """Both modules are in host memory, and the 8 blocks of the pool hold nothing."""
    engine = Engine(num_blocks=9, num_host_blocks=8, prefetches=True)
    engine.add(request("1", [span(A), span(B)], [A, B]))
    engine.prepare()
    engine.run_encodes()
    engine.residency.finish(engine.queue.pop(), [])
    engine.pool.free_blocks(engine.pool.get_new_blocks(8))
    assert len(engine.residency.tiers.host) == 2
    assert not engine.residency.store
    return engine


def read(engine, siblings):
    """Runs a request that reads `A`."""
    engine.add(request("2", [span(A)], [A], siblings))
    engine.prepare()
    engine.residency.finish(engine.queue.pop(), [])
    engine.prepare()


def test_a_sibling_comes_back_before_it_is_asked_for(engine):
    read(engine, [A, B])
    residency = engine.residency
    assert residency.store.lookup(B.key).blocks[0].ref_cnt == 0
    assert residency.store.stats.num_prefetches == 1
    assert residency.encodes.num_started == 2
    moves = residency.end_step({}, lambda _: []).moves
    assert [move.module.key for move in moves if move.action == "restore"] == [A.key, B.key]


def test_nothing_leaves_for_a_sibling(engine):
    # 3 blocks for A, and 4 that hold a plain prompt: there is one for B, which needs two.
    plain = engine.pool.get_new_blocks(4)
    read(engine, [B])
    assert engine.residency.store.lookup(B.key) is None
    engine.pool.free_blocks(plain)


def test_a_sibling_that_is_nowhere_is_not_encoded(engine):
    read(engine, [module("c", 5)])
    assert engine.residency.encodes.num_started == 2
    assert engine.residency.store.stats.num_prefetches == 0


def test_without_the_option_siblings_stay_away():
    engine = Engine(num_blocks=9, num_host_blocks=8)
    engine.residency.add(request("1", [span(A)], [A], [B]))
    assert not engine.residency.prefetch._wanted


def test_a_sibling_on_disk_is_read_ahead():
    engine = Engine(num_blocks=9, has_disk=True, prefetches=True)
    residency = engine.residency
    engine.add(request("1", [span(A)], [A], [B]))
    engine.prepare()
    residency.tiers.fetched(WorkerReport([], [A.key]))
    engine.prepare()
    engine.run_encodes()
    residency.finish(engine.queue.pop(), [])
    engine.prepare()
    fetched = [move.module.key for move in residency.end_step({}, lambda _: []).moves]
    assert fetched == [B.key]
    residency.tiers.fetched(WorkerReport([read_module(B)], []))
    engine.prepare()
    assert residency.store.lookup(B.key) is not None
