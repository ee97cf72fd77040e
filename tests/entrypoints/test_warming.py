"""Warming a schema: a few plans at a time, until it is done, replaced, or nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.entrypoints.test_schema_folder import front_end, schema
from vllm_promptcache.entrypoints.background import while_connected
from vllm_promptcache.entrypoints.engine_modules import EngineModules
from vllm_promptcache.entrypoints.warming import NUM_IN_FLIGHT
from vllm_promptcache.errors import ConflictError
from vllm_promptcache.pml import parse_schema

NUM_MODULES = 50
MANY = schema("many", *(f"text {i}" for i in range(NUM_MODULES)))


class Engine:
    """Stands in for vLLM's client; answers when it is told to.

    Attributes:
        num_now: Requests in flight.
        num_most: The most there have been.
        num_ever: All so far.
        priorities: Of all requests.
    """

    def __init__(self, policy: str = "fcfs") -> None:
        self.front_end = front_end(None)
        self.front_end.vllm_config.scheduler_config = SimpleNamespace(policy=policy)  # type: ignore[attr-defined]
        self.num_now = self.num_most = self.num_ever = 0
        self.priorities: set[int] = set()
        self.answers = asyncio.Event()
        self.renderer = self

    async def render_cmpl_async(self, prompts: list[Any]) -> list[Any]:
        return prompts

    async def generate(self, *args: Any, priority: int) -> AsyncIterator[None]:
        self.priorities.add(priority)
        self.num_ever += 1
        self.num_now += 1
        self.num_most = max(self.num_most, self.num_now)
        try:
            await self.answers.wait()
            await asyncio.sleep(0)
            yield None
        finally:
            self.num_now -= 1

    def warm(self) -> asyncio.Task[None]:
        """Starts to warm the schema."""
        layout = self.front_end.planner.schemas.add(parse_schema(MANY))
        return asyncio.create_task(EngineModules(self.front_end, self).warm(layout, None))

    async def is_full(self) -> None:
        """Waits until no more is sent."""
        while self.num_now < NUM_IN_FLIGHT:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(("policy", "is_last"), [("fcfs", False), ("priority", True)])
def test_a_few_modules_at_a_time(policy: str, is_last: bool) -> None:
    async def run() -> Engine:
        engine = Engine(policy)
        warming = engine.warm()
        await engine.is_full()
        engine.answers.set()
        await warming
        return engine

    engine = asyncio.run(run())
    assert (engine.num_ever, engine.num_most) == (NUM_MODULES, NUM_IN_FLIGHT)
    assert [priority > 0 for priority in engine.priorities] == [is_last]


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_schema_that_is_replaced_or_removed_is_not_warmed_further(is_replaced: bool) -> None:
    async def run() -> Engine:
        engine = Engine()
        warming = engine.warm()
        await engine.is_full()
        if is_replaced:
            engine.front_end.planner.schemas.add(parse_schema(schema("many", "other")))
        else:
            engine.front_end.planner.schemas.remove("many")
        engine.answers.set()
        with pytest.raises(ConflictError, match="was replaced or removed while it was warmed"):
            await warming
        assert engine.num_now == 0
        return engine

    assert asyncio.run(run()).num_ever == NUM_IN_FLIGHT


def test_a_client_that_goes_away_stops_it() -> None:
    async def run() -> Engine:
        engine, has_gone = Engine(), asyncio.Event()
        layout = engine.front_end.planner.schemas.add(parse_schema(MANY))

        async def receive() -> dict[str, str]:
            await has_gone.wait()
            return {"type": "http.disconnect"}

        request: Any = SimpleNamespace(receive=receive)
        work = EngineModules(engine.front_end, engine).warm(layout, None)
        waiting = asyncio.create_task(while_connected(request, work))
        await engine.is_full()
        has_gone.set()
        await waiting
        await asyncio.sleep(0.05)
        return engine

    engine = asyncio.run(run())
    assert (engine.num_ever, engine.num_now) == (NUM_IN_FLIGHT, 0)
