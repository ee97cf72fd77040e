"""Which modules host memory keeps."""

import pytest

from vllm_promptcache.store import HostTier

A, B, C = b"a", b"b", b"c"


@pytest.fixture
def tier():
    return HostTier(max_num_blocks=5)


def test_a_module_is_kept_until_others_are_worth_more(tier):
    assert tier.put(A, 10, 3) == []
    assert tier.put(B, 8, 2) == []
    tier.use(A)
    tier.use(A)
    assert tier.put(C, 8, 2) == [B]
    assert (A in tier, B in tier, C in tier, tier.num_blocks) == (True, False, True, 5)


def test_what_is_there_is_not_put_twice_and_what_is_too_large_is_not_put(tier):
    tier.put(A, 10, 3)
    assert tier.put(A, 10, 3) is None
    assert tier.put(B, 99, 6) is None
    assert (len(tier), tier.num_blocks) == (1, 3)


def test_without_room_nothing_is_kept():
    assert HostTier(0).put(A, 1, 1) is None


def test_nothing_is_left_behind(tier):
    tier.put(A, 10, 3)
    tier.clear()
    assert tier.get(A) is None
    assert tier.put(B, 10, 5) == []


def test_what_is_being_brought_back_is_not_driven_out_by_what_leaves_for_it(tier):
    tier.put(A, 3, 3)
    tier.put(B, 90, 2)
    with tier.keeping(A):
        assert tier.put(C, 50, 2) == [B]
        assert tier.put(b"d", 50, 3) is None
    assert A in tier
    assert tier.put(b"d", 50, 3) == [A]
