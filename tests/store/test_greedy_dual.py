"""GreedyDual-Size-Frequency, by its definition."""

from vllm_promptcache.store import GreedyDual

A, B, C = b"a", b"b", b"c"


def used(*keys, value=1.0):
    ranking = GreedyDual()
    for key in keys:
        ranking.use(key, value)
    return ranking


def test_the_least_used_leaves_first():
    ranking = used(A, A, B, C, C, C)
    assert [ranking.pop_least() for _ in range(4)] == [B, A, C, None]


def test_use_counts_by_its_value():
    ranking = used(A, A)
    ranking.use(B, 5.0)
    assert ranking.pop_least() == A


def test_what_is_not_used_ages():
    ranking = used(A, A, A)
    for _ in range(3):
        ranking.use(B, 0.9)
        assert ranking.pop_least() == B
    ranking.use(B, 0.9)
    assert ranking.pop_least() == A  # three uses long ago are worth less than one now


def test_one_that_may_not_leave_stays_and_keeps_its_rank():
    ranking = used(A, B, B)
    assert ranking.pop_least(lambda key: key != A) == B
    assert ranking.pop_least() == A


def test_a_forgotten_one_begins_anew():
    ranking = used(A, A, A, B, B)
    ranking.forget(A)
    ranking.use(A, 1.0)
    assert ranking.pop_least() == A


def test_many_uses_take_no_more_room():
    ranking = used(*[A, B] * 1000)
    assert len(ranking._heap) < 100
