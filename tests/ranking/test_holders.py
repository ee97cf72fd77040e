"""Which replicas hold which modules."""

from __future__ import annotations

from hashlib import sha256

import pytest

from vllm_promptcache.ranking import holders
from vllm_promptcache.ranking.holders import Holders
from vllm_promptcache.ranking.summary import short_key


def key(name: str) -> bytes:
    return sha256(name.encode()).digest()


def short_keys(*names: str) -> list[int]:
    return [short_key(key(name)) for name in names]


def num_held(found: Holders, **tokens: int) -> list[int]:
    return found.num_held({key(name): number for name, number in tokens.items()}, 8).tolist()


def test_tokens_are_summed_by_replica() -> None:
    found = Holders()
    found.add(0, short_keys("a", "b", "e"))
    found.add(7, short_keys("b", "c"))
    found.add(3, short_keys("d"))
    assert num_held(found, a=1, e=4000, b=20, c=300, d=0, new=9) == [4021, 0, 0, 0, 0, 0, 0, 320]
    assert num_held(found, new=9) == num_held(found) == [0] * 8


def test_more_slots_than_a_word_has_bits() -> None:
    found = Holders()
    found.add(250, short_keys("a"))
    assert found.num_held({key("a"): 5}, 256).nonzero()[0].tolist() == [250]


def test_what_nobody_holds_takes_no_room() -> None:
    found = Holders()
    found.add(0, short_keys("a", "b"))
    found.add(1, short_keys("a"))
    found.discard(0, short_keys("a", "never"))
    assert num_held(found, a=1, b=2) == [2, 1, 0, 0, 0, 0, 0, 0]
    found.discard(1, short_keys("a"))
    assert len(found) == 1


def test_a_replica_is_cleared_and_no_other() -> None:
    found = Holders()
    found.add(1, short_keys("a", "b"))
    found.add(2, short_keys("b"))
    found.clear(1)
    assert num_held(found, a=1, b=2) == [0, 0, 2, 0, 0, 0, 0, 0]
    assert len(found) == 1
    found.clear(0)
    assert len(found) == 1


def test_modules_not_added_for_longest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "MAX_NUM_MODULES", 2)
    found = Holders()
    found.add(0, short_keys("a", "b"))
    found.add(1, short_keys("a"))
    found.add(0, short_keys("c"))
    assert num_held(found, a=1, b=20, c=300)[:2] == [301, 1]
    assert len(found) == 2
