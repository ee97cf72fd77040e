"""Attention layers ask a connector of others, and not ours."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import vllm.model_executor.layers.attention.kv_transfer_utils as utils

from vllm_promptcache.compat.worker import leave_layers_alone


@pytest.mark.parametrize(("is_ours", "num_asked"), [(True, 0), (False, 2)])
def test_layers_ask_connectors_of_others(
    monkeypatch: pytest.MonkeyPatch, is_ours: bool, num_asked: int
) -> None:
    asked: list[int] = []
    group = SimpleNamespace(is_ours=is_ours)
    monkeypatch.setattr(utils, "has_kv_transfer_group", lambda: True)
    monkeypatch.setattr(utils, "get_kv_transfer_group", lambda: group)
    monkeypatch.setattr(utils, "is_v1_kv_transfer_group", lambda: bool(asked.append(1)))
    leave_layers_alone(lambda found: found.is_ours)

    @utils.maybe_transfer_kv_layer
    def forward(layer_name: str) -> str:
        return layer_name

    assert [forward("a"), forward("b")] == ["a", "b"]
    assert len(asked) == num_asked
