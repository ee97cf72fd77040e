"""What a replica says of its modules."""

from __future__ import annotations

from hashlib import sha256

import pytest

from vllm_promptcache.ranking import Summary, summary


def key(number: int) -> bytes:
    return sha256(number.to_bytes(4, "big")).digest()


def test_keys_are_ascending_whatever_order_they_come_in() -> None:
    modules = [(key(number), number) for number in range(50)]
    one = Summary.of(modules)
    assert one == Summary.of(reversed(modules))
    assert one.num_tokens == sum(range(50))
    expected = sorted(int.from_bytes(key(number)[:8], "little") for number in range(50))
    assert one.short_keys.tolist() == expected


def test_keys_that_begin_alike_are_one() -> None:
    assert len(Summary.of([(b"a" * 32, 1), (b"a" * 8 + b"b" * 24, 1)]).short_keys) == 1


def test_the_first_modules_are_named_and_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "MAX_NUM_MODULES", 2)
    found = Summary.of([(key(number), 10) for number in range(5)])
    assert found == Summary(Summary.of([(key(0), 10), (key(1), 10)]).packed_keys, 50)
