"""Serve's router, without Serve: what it makes of what replicas say."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.request_router.common import ReplicaQueueLengthCache
from ray.serve.request_router import RequestRouter

from vllm_promptcache.distributed.hint import Hint, module_key
from vllm_promptcache.distributed.router import ModuleAffinityRouter
from vllm_promptcache.ranking import Summary

HINT = Hint("s", ("a", "b"))


class Id(str):
    """As much of a `ReplicaID` as the router asks for."""

    @property
    def unique_id(self) -> str:
        return str(self)


def replica(name: str, *modules: str, schema: str = "s") -> Any:
    held = [(module_key(schema, module), 100) for module in modules]
    return SimpleNamespace(replica_id=Id(name), routing_stats=asdict(Summary.of(held)))


def request(hint: Hint | None = HINT) -> Any:
    return SimpleNamespace(args=[hint, None], routing_context=SimpleNamespace(should_backoff=False))


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> ModuleAffinityRouter:
    monkeypatch.setattr(RequestRouter, "update_replicas", lambda self, replicas: None)
    made = object.__new__(ModuleAffinityRouter)
    made._replica_queue_len_cache = ReplicaQueueLengthCache()
    made.initialize_state(margin=2)
    return made


def ranked(router: ModuleAffinityRouter, replicas: list[Any], asked: Any) -> list[str]:
    found = asyncio.run(router.choose_replicas(replicas, asked))
    return [str(each.replica_id) for (each,) in found]


def test_the_holder_comes_first_and_all_others_behind(router: ModuleAffinityRouter) -> None:
    replicas = [replica("one"), replica("two", "", "a", "b"), replica("three", "", "a")]
    router.update_replicas(replicas)
    asked = request()
    assert ranked(router, replicas, asked) == ["two", "three", "one"]
    assert asked.routing_context.should_backoff


def test_a_holder_that_is_too_busy_comes_last(router: ModuleAffinityRouter) -> None:
    replicas = [replica("one"), replica("two", "", "a", "b")]
    router.update_replicas(replicas)
    router.replica_queue_len_cache.update(Id("two"), 3)
    assert ranked(router, replicas, request()) == ["one", "two"]


def test_what_was_sent_is_expected_before_it_is_told(router: ModuleAffinityRouter) -> None:
    replicas = [replica("one"), replica("two")]
    router.update_replicas(replicas)
    (first, second) = ranked(router, replicas, request())
    router.on_request_routed(request(), Id(second), None)
    assert ranked(router, replicas, request()) == [second, first]


def test_a_replica_that_has_gone_is_forgotten(router: ModuleAffinityRouter) -> None:
    holder, other = replica("two", "", "a"), replica("one")
    router.update_replicas([holder, other])
    router.update_replicas([other])
    # One of the same name that has begun anew holds nothing.
    again = [replica("one", "", "a"), replica("two")]
    router.update_replicas(again)
    assert ranked(router, again, request()) == ["one", "two"]


def test_without_modules_the_least_busy_one_is_taken(router: ModuleAffinityRouter) -> None:
    replicas = [replica("one", "a"), replica("two")]
    router.update_replicas(replicas)
    for busy, idle in (("one", "two"), ("two", "one")):
        router.replica_queue_len_cache.update(Id(busy), 1)
        router.replica_queue_len_cache.update(Id(idle), 0)
        assert ranked(router, replicas, request(None)) == [idle, busy]
