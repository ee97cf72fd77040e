"""The module store on vLLM's own block pool."""

import pytest
from vllm.v1.core.block_pool import BlockPool

from vllm_promptcache.store import ModuleStore

KEY, OTHER_KEY = b"k" * 32, b"o" * 32


@pytest.fixture
def pool():
    return BlockPool(num_gpu_blocks=9, enable_caching=True, hash_block_size=4)


@pytest.fixture
def store(pool):
    return ModuleStore(pool)


def encode(store, key, num_blocks):
    """Commits a module as an encode does: it holds its blocks until it ends."""
    blocks = store.block_pool.get_new_blocks(num_blocks)
    store.commit(key, blocks, num_blocks * 4 - 1)
    store.block_pool.free_blocks(reversed(blocks))
    return blocks


def test_a_committed_module_is_resident_and_its_blocks_are_free(store, pool):
    blocks = encode(store, KEY, 3)
    assert list(store.lookup(KEY).blocks) == blocks
    assert store.lookup(KEY).num_tokens == 11
    assert pool.get_num_free_blocks() == 8
    assert store.lookup(OTHER_KEY) is None


def test_a_module_that_lost_one_block_is_gone(store, pool):
    encode(store, KEY, 3)
    pool.get_new_blocks(6)  # five were never used: one of the module's goes
    assert store.lookup(KEY) is None
    assert store.modules == {}
    assert store.stats.num_evictions == 1
    assert all(block.block_hash is None for block in pool.blocks)


def test_a_block_that_was_given_to_another_module_is_not_believed_in(store, pool):
    encode(store, KEY, 3)
    for block in pool.get_new_blocks(8):
        pool.free_blocks([block])
    encode(store, OTHER_KEY, 8)
    assert store.lookup(KEY) is None
    assert store.lookup(OTHER_KEY) is not None


def test_a_pinned_module_is_not_evicted(store, pool):
    blocks = encode(store, KEY, 3)
    store.pin("request", KEY)
    store.pin("request", KEY)
    assert [block.ref_cnt for block in blocks] == [1, 1, 1]
    taken = pool.get_new_blocks(5)
    assert pool.get_num_free_blocks() == 0
    assert store.lookup(KEY) is not None
    store.unpin("request")
    pool.free_blocks(taken)
    assert pool.get_num_free_blocks() == 8
    assert [block.ref_cnt for block in blocks] == [0, 0, 0]


def test_pins_of_two_owners_are_counted(store):
    blocks = encode(store, KEY, 2)
    store.pin("a", KEY)
    store.pin("b", KEY)
    store.unpin_all(keep=["b"])
    assert [block.ref_cnt for block in blocks] == [1, 1]
    store.unpin_all()
    assert store.pinned_block_ids == []


def test_pinning_what_is_not_there_does_nothing(store, pool):
    store.pin("request", KEY)
    store.unpin("request")
    store.unpin("nobody")
    assert pool.get_num_free_blocks() == 8


def test_a_reset_of_the_prefix_cache_forgets_modules(store, pool):
    encode(store, KEY, 3)
    assert pool.reset_prefix_cache()
    assert store.lookup(KEY) is None


def everything_is_taken(pool):
    pool.free_blocks(pool.get_new_blocks(8))


def one_block_is_taken_out(pool):
    pool.evict_blocks({first_of_module(pool)})


def all_is_reset(pool):
    assert pool.reset_prefix_cache()


def a_prefix_moves_elsewhere(pool):
    block = pool.blocks[first_of_module(pool)]
    (other,) = pool.get_new_blocks(1)
    pool.move_block_hashes(block, other)


def first_of_module(pool):
    return next(block.block_id for block in pool.blocks if block.block_hash is not None)


@pytest.mark.parametrize(
    "lose", [everything_is_taken, one_block_is_taken_out, all_is_reset, a_prefix_moves_elsewhere]
)
def test_the_store_is_told_wherever_a_block_is_lost(store, pool, lose):
    encode(store, KEY, 3)
    lose(pool)
    assert len(store) == 0
    assert store.stats.num_evictions == 1
    assert store.lookup(KEY) is None


def test_a_block_that_is_lost_while_others_are_handed_out_takes_the_rest_along(store, pool):
    """In the middle of that the store forgets the rest, some of which is handed out as well."""
    encode(store, KEY, 3)
    encode(store, OTHER_KEY, 3)
    taken = pool.get_new_blocks(5)
    assert store.lookup(KEY) is None
    assert store.lookup(OTHER_KEY).is_intact
    assert len({block.block_id for block in taken}) == 5
    assert all(block.block_hash is None and block.ref_cnt == 1 for block in taken)


def test_a_module_that_comes_back_is_not_taken_for_the_one_that_left(store, pool):
    encode(store, KEY, 3)
    one_block_is_taken_out(pool)
    encode(store, KEY, 2)
    assert store.lookup(KEY).is_intact
    everything_is_taken(pool)
    assert len(store) == 0


def test_the_least_recently_used_module_goes_first_and_its_last_block_first_of_all(store, pool):
    first = encode(store, KEY, 3)
    encode(store, OTHER_KEY, 3)
    pool.get_new_blocks(2)
    store.pin("request", KEY)
    store.unpin("request")
    pool.get_new_blocks(1)
    assert store.lookup(OTHER_KEY) is None
    assert store.lookup(KEY) is not None
    assert [block.block_hash is not None for block in first] == [True, True, True]


def test_module_hashes_are_no_ordinary_hashes(store):
    encode(store, KEY, 2)
    module = store.lookup(KEY)
    assert len(set(module.hashes)) == 2
    # An ordinary one is a digest of at most 32 bytes and a group id.
    assert all(len(block_hash) > 36 for block_hash in module.hashes)


def test_a_second_commit_of_a_resident_module_changes_nothing(store, pool):
    blocks = encode(store, KEY, 2)
    encode(store, KEY, 2)
    assert list(store.lookup(KEY).blocks) == blocks
    assert store.stats.num_commits == 1
    assert pool.get_num_free_blocks() == 8
