"""Fingerprints of KV, which a worker verifies when it is told to."""

from __future__ import annotations

import pytest

from vllm_promptcache.errors import ServerError
from vllm_promptcache.worker import fingerprint
from vllm_promptcache.worker.fingerprint import Fingerprints

A, B = b"a" * 32, b"b" * 32


def test_what_changed_or_was_never_there_is_an_error() -> None:
    fingerprints = Fingerprints()
    fingerprints.take(A, 1)
    fingerprints.check(A, 1)
    for key, found in ((A, 2), (B, 1)):
        with pytest.raises(ServerError, match=key.hex()):
            fingerprints.check(key, found)


def test_they_are_bounded_and_a_forgotten_one_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "MAX_NUM_FINGERPRINTS", 10)
    fingerprints = Fingerprints()
    for number in range(1000):
        fingerprints.take(number.to_bytes(32, "big"), number)
    assert len(fingerprints) == 10
    fingerprints.check(A, 1)
    with pytest.raises(ServerError):
        fingerprints.check(A, 2)
