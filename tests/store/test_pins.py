"""Pins: what stays in the block pool, for whom, and until when."""

import pytest
from vllm.v1.core.block_pool import BlockPool

from vllm_promptcache.errors import ConflictError
from vllm_promptcache.store import PIN_OWNER, ModuleStore, PinnedModule, Pins

A, B = b"a" * 32, b"b" * 32


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pins(clock):
    pool = BlockPool(num_gpu_blocks=9, enable_caching=True, hash_block_size=4)
    return Pins(ModuleStore(pool), 4, clock)


def commit(pins, key, num_blocks):
    store = pins._store
    blocks = store.block_pool.get_new_blocks(num_blocks)
    store.commit(key, blocks, num_blocks * 4)
    pins.fulfil(key)
    store.block_pool.free_blocks(reversed(blocks))


def held(pins):
    return set(pins._store.held(PIN_OWNER))


def test_a_resident_module_is_held_at_once_and_a_missing_one_when_it_is_committed(pins):
    commit(pins, A, 2)
    pins.replace("s", [PinnedModule(A, 2), PinnedModule(B, 2)])
    assert held(pins) == {A}
    commit(pins, B, 2)
    assert held(pins) == {A, B}
    pool = pins._store.block_pool
    pool.free_blocks(pool.get_new_blocks(pool.get_num_free_blocks()))
    assert pins._store.lookup(A) is not None
    assert pins._store.lookup(B) is not None


def test_what_a_schema_pins_no_more_is_let_go(pins):
    commit(pins, A, 2)
    pins.replace("s", [PinnedModule(A, 2)])
    pins.replace("t", [PinnedModule(A, 2)])
    pins.replace("s", [PinnedModule(B, 2)])
    assert held(pins) == {A}
    pins.replace("t", [])
    assert held(pins) == set()
    assert pins._store.block_pool.get_num_free_blocks() == 8


def test_more_than_may_be_pinned_is_refused_with_the_numbers_and_changes_nothing(pins):
    commit(pins, A, 2)
    pins.replace("s", [PinnedModule(A, 2)])
    with pytest.raises(ConflictError, match="would take 5 KV cache blocks, of which 4 may"):
        pins.replace("t", [PinnedModule(B, 3)])
    assert held(pins) == {A}
    assert pins.num_blocks == 2
    pins.replace("t", [PinnedModule(A, 2), PinnedModule(B, 2)])  # shared blocks count once
    assert pins.num_blocks == 4


def test_a_pin_ends_with_its_time_and_the_longest_wish_holds(pins, clock):
    commit(pins, A, 2)
    pins.replace("s", [PinnedModule(A, 2, ttl_s=10)])
    pins.replace("t", [PinnedModule(A, 2, ttl_s=20)])
    clock.now += 10
    pins.expire()
    assert held(pins) == {A}
    clock.now += 10
    pins.expire()
    assert held(pins) == set()
    assert not pins
    commit(pins, B, 2)
    assert held(pins) == set()


def test_pins_give_way_and_are_held_again_at_the_next_use(pins):
    commit(pins, A, 2)
    commit(pins, B, 2)
    pins.replace("s", [PinnedModule(A, 2), PinnedModule(B, 2)])
    pins.give_way([A])
    assert held(pins) == {A}
    pins.fulfil(B)
    assert held(pins) == {A, B}
