"""Hooks into the scheduler."""

from __future__ import annotations

from types import SimpleNamespace

from vllm_promptcache.compat.scheduler import choose_published_blocks


def test_blocks_of_modular_requests_are_not_cached():
    cached = []
    coordinator = SimpleNamespace(cache_blocks=lambda request, n: cached.append(request.request_id))
    manager = SimpleNamespace(coordinator=coordinator)
    choose_published_blocks(manager, lambda request, n: request.request_id == "plain")
    for request_id in ("plain", "modular"):
        coordinator.cache_blocks(SimpleNamespace(request_id=request_id), 64)
    assert cached == ["plain"]
