"""Fingerprints of KV, which a worker verifies when it is told to."""

from __future__ import annotations

import pytest
import torch

from vllm_promptcache.errors import ServerError
from vllm_promptcache.worker import fingerprint
from vllm_promptcache.worker.fingerprint import (
    Fingerprints,
    Shard,
    model_fingerprint,
    weights_of,
)

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


SHARDS = [Shard(0, 1, 0, 1), Shard(0, 2, 0, 1), Shard(1, 2, 0, 1), Shard(0, 1, 0, 2)]
SHARDS += [Shard(0, 1, 1, 2), Shard(0, 2, 0, 2), Shard(1, 2, 1, 2), Shard(0, 4, 0, 1)]


def test_shards_of_equal_weights_differ() -> None:
    """As where all weights are made up, or only other workers' were changed."""
    weights = [("weight", torch.ones(4))]
    caches = {"layer": torch.zeros(3, 8)}
    found = [model_fingerprint(weights, caches, b"layout", shard) for shard in SHARDS]
    assert len(set(found)) == len(SHARDS)
    assert found == [model_fingerprint(weights, caches, b"layout", shard) for shard in SHARDS]


def test_models_and_layers_differ() -> None:
    whole, one, zero = Shard(0, 1, 0, 1), torch.ones(4), torch.zeros(4)
    caches = {"layer": torch.zeros(3, 8)}
    found = {
        model_fingerprint([("weight", one)], caches, b"layout", whole),
        model_fingerprint([("weight", zero)], caches, b"layout", whole),
        model_fingerprint([("other", one)], caches, b"layout", whole),
        model_fingerprint([("weight", one)], {"other": torch.zeros(3, 8)}, b"layout", whole),
        model_fingerprint([("weight", one)], {"layer": torch.zeros(3, 4)}, b"layout", whole),
        model_fingerprint([("weight", one)], caches, b"other", whole),
    }
    assert len(found) == 6
    more_blocks = {"layer": torch.zeros(9, 8)}
    assert model_fingerprint([("weight", one)], more_blocks, b"layout", whole) in found


def test_kv_of_another_type_or_scale_has_another_fingerprint() -> None:
    def fingerprint_of(dtype: torch.dtype, k_scale: float) -> str:
        # As vLLM keeps the scale of an attention layer.
        layer = torch.nn.Module()
        layer.register_buffer("_k_scale", torch.tensor(k_scale))
        caches = {"0": torch.zeros(2, 3).to(dtype)}
        return model_fingerprint(weights_of(layer), caches, b"", Shard(0, 1, 0, 1))

    one = fingerprint_of(torch.float8_e4m3fn, 1.0)
    assert one == fingerprint_of(torch.float8_e4m3fn, 1.0)
    assert one != fingerprint_of(torch.float8_e4m3fnuz, 1.0)
    assert one != fingerprint_of(torch.float8_e4m3fn, 2.0)
