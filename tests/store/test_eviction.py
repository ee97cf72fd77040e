"""Which modules leave vLLM's block pool, and in which state they leave its free list."""

from random import Random

import pytest
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import BlockHash, make_block_hash_with_group_id

from vllm_promptcache.compat.block_pool import before_allocation
from vllm_promptcache.store import Eviction, GreedyDual, ModuleStore

KEYS = [bytes([i]) * 32 for i in range(5)]
NUM_BLOCKS = 12


class Cache:
    """A pool with an eviction that writes down who left."""

    def __init__(self, ranking):
        self.pool = BlockPool(NUM_BLOCKS + 1, enable_caching=True, hash_block_size=4)
        self.store, self.left = ModuleStore(self.pool), []
        self.eviction = Eviction(self.store, ranking, self._note)
        before_allocation(self.pool, self.eviction.make_room)

    def _note(self, module):
        assert module.is_intact
        self.left.append(KEYS.index(module.key))

    def encode(self, number, num_blocks=3):
        blocks = self.pool.get_new_blocks(num_blocks)
        self.store.commit(KEYS[number], blocks, num_blocks * 4)
        self.eviction.use(KEYS[number])
        self.pool.free_blocks(reversed(blocks))

    def use(self, number, times=1):
        blocks = self.store.lookup(KEYS[number]).blocks
        for _ in range(times):
            self.pool.touch(blocks)
            self.eviction.use(KEYS[number])
            self.pool.free_blocks(reversed(blocks))

    def plain(self, num_blocks, *, cached=True):
        """A plain request: takes blocks, publishes them and goes."""
        blocks = self.pool.get_new_blocks(num_blocks)
        for block in blocks if cached else ():
            name = make_block_hash_with_group_id(BlockHash(bytes([block.block_id]) * 32), 0)
            self.pool._insert_block_hash(name, block, num_tokens=None)
        self.pool.free_blocks(reversed(blocks))

    @property
    def resident(self):
        return [i for i, key in enumerate(KEYS) if self.store.lookup(key) is not None]


@pytest.fixture
def cache():
    return Cache(GreedyDual())


@pytest.fixture
def lru():
    return Cache(None)


def test_a_module_leaves_as_a_whole(cache):
    for number in range(4):
        cache.encode(number)
    block_ids = cache.store.lookup(KEYS[0]).block_ids
    taken = cache.pool.get_new_blocks(1)
    assert cache.left == [0]
    # The rest of it goes next.
    taken += cache.pool.get_new_blocks(2)
    assert sorted(block.block_id for block in taken) == sorted(block_ids)
    assert cache.resident == [1, 2, 3]


def test_the_one_that_was_used_least_leaves(cache):
    for number in range(4):
        cache.encode(number)
    cache.use(0, times=3)
    cache.use(1, times=2)
    cache.use(3, times=2)
    cache.encode(4)
    assert cache.left == [2]
    cache.encode(2)
    assert cache.left == [2, 4]


def test_lru_goes_by_time_alone(lru):
    for number in range(4):
        lru.encode(number)
    lru.use(0, times=3)
    lru.use(1)
    lru.encode(4)
    assert lru.left == [2]


def test_a_referenced_module_stays_and_one_with_a_free_tail_is_spared_once(cache):
    for number in range(4):
        cache.encode(number)
    first = cache.store.lookup(KEYS[0])
    cache.pool.touch(first.blocks[:2])
    cache.plain(3)
    assert cache.left == [1]
    cache.plain(10, cached=False)
    assert cache.left == [1, 2, 3, 0]


def test_plain_requests_are_not_starved_by_idle_modules(cache):
    for number in range(4):
        cache.encode(number)
        cache.use(number, times=100)
    for _ in range(4):
        cache.plain(3)
    assert cache.resident == []


def test_plain_blocks_give_way_before_a_module_that_was_used_later(cache):
    cache.plain(6)
    cache.encode(0)
    cache.encode(1)
    cache.encode(2)
    assert cache.resident == [0, 1, 2]
    assert cache.left == []


def test_a_pool_without_modules_is_left_alone(cache):
    cache.plain(NUM_BLOCKS)
    assert cache.pool.get_num_free_blocks() == NUM_BLOCKS


def test_many_random_allocations_keep_the_books(cache):
    rng = Random(0)
    for _ in range(3000):
        number = rng.randrange(5)
        if rng.random() < 0.3:
            cache.plain(rng.randint(1, 6))
        elif rng.random() < 0.1:
            cache.pool.evict_blocks({rng.randint(1, NUM_BLOCKS)})
        elif rng.random() < 0.01:
            assert cache.pool.reset_prefix_cache()
        elif cache.store.lookup(KEYS[number]) is None:
            cache.encode(number, rng.randint(1, 5))
        else:
            cache.use(number)
        assert cache.pool.get_num_free_blocks() == NUM_BLOCKS
        assert all(module.is_intact for module in cache.store.modules.values())
        ids = [b for m in cache.store.modules.values() for b in m.block_ids]
        assert len(ids) == len(set(ids))
        queue = cache.pool.free_block_queue.get_all_free_blocks()
        assert sorted(block.block_id for block in queue) == list(range(1, NUM_BLOCKS + 1))


def test_a_postponed_module_leaves_in_order_where_all_blocks_are_taken(cache):
    """The list is gone through to its end, where those are that were moved there on the way."""
    cache.encode(0)
    cache.use(0, times=3)
    cache.encode(1)
    cache.plain(NUM_BLOCKS)
    assert cache.left == [1, 0]


def test_what_resets_take_away_is_not_ranked_for_ever():
    ranking = GreedyDual()
    cache = Cache(ranking)
    for number in range(2000):
        key = number.to_bytes(32, "big")
        blocks = cache.pool.get_new_blocks(3)
        cache.store.commit(key, blocks, 12)
        cache.eviction.use(key)
        cache.pool.free_blocks(reversed(blocks))
        if number % 3 == 2:
            assert cache.pool.reset_prefix_cache()
            assert cache.store.modules == {}
    assert len(ranking) < 100
