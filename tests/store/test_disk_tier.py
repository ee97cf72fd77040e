"""What the scheduler knows of modules on disk."""

import pytest

from vllm_promptcache.store import DiskTier, ReadModule, disk_tier

A, B = b"a" * 32, b"b" * 32


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tier(clock):
    return DiskTier(is_on=True, max_staged_blocks=100, clock=clock)


def read(key, num_tokens=40, num_blocks=2, encode_id=b"encode"):
    return ReadModule(key, num_tokens, num_blocks, encode_id)


def test_a_module_is_asked_for_once_and_then_staged(tier):
    assert tier.may_have(A)
    assert [tier.ask(A), tier.ask(A)] == [True, False]
    assert tier.staged(A) is None
    assert tier.answered([read(A)], []) == ([A], [])
    assert (tier.staged(A).num_tokens, tier.staged(A).num_blocks) == (40, 2)
    assert not tier.ask(A)
    tier.forget(A)
    assert tier.staged(A) is None


def test_one_that_is_absent_is_encoded_and_then_asked_for_again(tier):
    tier.ask(A)
    tier.answered([], [A])
    assert not tier.may_have(A)
    tier.written(A)
    assert tier.may_have(A)
    assert tier.ask(A)


def test_answers_from_before_a_reset_do_not_count(tier):
    tier.ask(A)
    tier.ask(B)
    tier.clear()
    assert tier.answered([read(A)], [B]) == ([], [])
    assert tier.staged(A) is None
    assert tier.may_have(B)


def test_what_nobody_claims_is_bounded(tier, monkeypatch):
    monkeypatch.setattr(disk_tier, "MAX_NUM_STAGED", 1)
    tier.ask(A)
    tier.ask(B)
    assert tier.answered([read(A), read(B)], []) == ([A, B], [A])
    assert tier.staged(A) is None
    assert tier.ask(A)


def test_without_a_folder_nothing_is_asked_for():
    assert not DiskTier(is_on=False, max_staged_blocks=0).may_have(A)


def test_modules_with_an_adapter_are_not_kept(tier):
    assert not tier.may_have(A + b"lora")


def names(num):
    return [number.to_bytes(32, "big") for number in range(num)]


def test_what_waits_in_host_memory_is_bounded_by_blocks(tier):
    a, b, c = names(3)
    for key in (a, b, c):
        tier.ask(key)
    assert tier.answered([read(a, 1600, 50), read(b, 1600, 50)], []) == ([a, b], [])
    assert tier.answered([read(c, 32, 1)], []) == ([c], [a])
    # A module that is larger than all of it must be restored all the same.
    tier.ask(a)
    assert tier.answered([read(a, 9999, 400)], []) == ([a], [b, c])
    assert tier.staged(a) is not None


def test_not_more_is_read_at_once_than_memory_is_meant_for(tier):
    keys = names(disk_tier.MAX_NUM_ASKED + 1)
    assert [tier.ask(key) for key in keys] == [True] * disk_tier.MAX_NUM_ASKED + [False]
    assert all(map(tier.may_have, keys))
    tier.answered([], keys[:1])
    assert tier.ask(keys[-1])


def test_what_is_known_not_to_be_there_is_bounded(tier, monkeypatch):
    """Of modules that were never encoded, since their requests were aborted."""
    monkeypatch.setattr(disk_tier, "MAX_NUM_ABSENT", 10)
    keys = names(1000)
    for key in keys:
        tier.ask(key)
        tier.answered([], [key])
    assert len(tier._absent) == 10
    assert [tier.may_have(key) for key in (keys[0], keys[-1])] == [True, False]


def test_a_disk_that_hangs_keeps_no_request_waiting(tier, clock):
    tier.ask(A)
    clock.now += disk_tier.PATIENCE_S
    assert tier.may_have(A)
    clock.now += 1
    assert not tier.may_have(A)
    assert not tier.may_have(B)
    tier.answered([read(A)], [])
    assert tier.may_have(A)
    assert tier.may_have(B)


@pytest.fixture
def shards(clock):
    """The tier of an engine with three workers, which are to read `A`."""
    tier = DiskTier(is_on=True, max_staged_blocks=100, num_workers=3, clock=clock)
    tier.ask(A)
    return tier


def test_a_module_is_read_when_all_workers_have_read_it(shards):
    for found in ([read(A)], [], [read(A)]):
        assert shards.answered(found, []) == ([], [])
        assert shards.staged(A) is None
        assert shards.may_have(A)
    assert shards.answered([read(A)], []) == ([A], [])
    assert shards.staged(A).num_blocks == 2


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize(
    "other", [None, read(A, encode_id=b"other"), read(A, num_tokens=39), read(A, num_blocks=3)]
)
def test_a_module_that_one_worker_lacks_is_absent_and_the_others_drop_it(shards, place, other):
    """Or that it has of another encode, or in another size."""
    answers = [read(A), read(A)]
    answers.insert(place, other)
    told = [shards.answered([one] if one else [], [] if one else [A]) for one in answers]
    assert told == [([], []), ([], []), ([], [A])]
    assert shards.staged(A) is None
    assert not shards.may_have(A)


def test_what_no_worker_has_need_not_be_dropped(shards):
    assert shards.answered([], [A, A, A]) == ([], [])
    assert not shards.may_have(A)


def test_a_module_is_not_asked_for_again_before_all_have_answered(shards):
    """Else an answer to the first question could be taken for one to the second."""
    shards.answered([read(A)], [A])
    shards.written(A)
    assert not shards.ask(A)
    assert shards.may_have(A)
    shards.answered([read(A)], [])
    shards.written(A)
    assert shards.ask(A)
    assert shards.answered([read(A)] * 3, []) == ([A], [])


def test_what_has_become_of_a_module_meanwhile_counts_more_than_the_answers(shards):
    """It was kept in host memory, and may have left it since: some workers have it, others not."""
    shards.answered([read(A)], [])
    shards.forget(A)
    assert not shards.ask(A)
    assert shards.answered([read(A)] * 2, []) == ([], [A])
    assert shards.staged(A) is None
    assert shards.ask(A)


def test_a_worker_that_hangs_keeps_no_request_waiting_though_others_answer(shards, clock):
    clock.now += disk_tier.PATIENCE_S - 1
    shards.ask(B)
    shards.answered([read(A), read(B)], [])
    clock.now += 2
    assert not shards.may_have(A)
    shards.answered([read(A), read(B)], [])
    assert not shards.may_have(B)
    shards.answered([read(A)], [])
    assert shards.may_have(A)
    assert shards.may_have(B)
