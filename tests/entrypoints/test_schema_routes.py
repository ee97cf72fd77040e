"""The routes without an engine: what is described how often, and what happens meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.entrypoints.test_schema_folder import front_end, schema
from vllm_promptcache.core.reports.introspection import STATUS_UTILITY
from vllm_promptcache.entrypoints import schema_info
from vllm_promptcache.entrypoints.engine_modules import EngineModules
from vllm_promptcache.entrypoints.front_end import FrontEnd
from vllm_promptcache.entrypoints.schema_routes import SchemaEndpoints, SchemaRoutes
from vllm_promptcache.entrypoints.schema_service import SchemaService

ROUTE = "/v1/prompt_schemas"


class Engine:
    """Stands in for the engine's client.

    Attributes:
        meanwhile: Is called while the engine is asked about modules.
    """

    def __init__(self) -> None:
        self.engine_core = self
        self.meanwhile: Callable[[], object] = lambda: None

    async def call_utility_async(self, utility: str, *args: Any) -> Any:
        self.meanwhile()
        keys = args[0] if utility == STATUS_UTILITY else []
        return [("kv_cache", False, 0, 0, 0, None) for _ in keys]


Answer = Callable[..., Coroutine[Any, Any, httpx.Response]]


def serve(
    front: FrontEnd, engine: Engine, ask: Callable[[Answer], Coroutine[Any, Any, None]]
) -> None:
    """Serves the routes while `ask` sends requests: its argument takes those of httpx."""
    app = FastAPI()
    SchemaEndpoints().attach_router(app)
    app.state.prompt_schemas = SchemaRoutes(SchemaService(front), EngineModules(front, engine))

    async def run() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            await ask(client.request)

    asyncio.run(run())


def test_a_schema_is_described_as_it_was_when_it_was_asked_for(tmp_path: Path) -> None:
    """A PUT while the engine is asked about modules: there are others then."""
    front, engine, other = front_end(tmp_path), Engine(), SchemaService(front_end(tmp_path))

    async def ask(request: Answer) -> None:
        added = await request("POST", ROUTE, json={"schema": schema("a", "x", "y z")})
        assert (added.status_code, added.json()["num_changed_tokens"]) == (201, 3)
        engine.meanwhile = lambda: other.replace("a", schema("a", "x"))
        found = await request("GET", f"{ROUTE}/a")
        assert found.status_code == 200
        modules = [(module["path"], module["tier"]) for module in found.json()["modules"]]
        assert modules == [("", "kv_cache"), ("m0", "kv_cache"), ("m1", "kv_cache")]
        engine.meanwhile = lambda: None
        again = await request("GET", f"{ROUTE}/a")
        assert [module["path"] for module in again.json()["modules"]] == ["", "m0"]

    serve(front, engine, ask)


def test_modules_are_summarized_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_schemas, num_modules, num_made = 20, 10, 0

    class Counting(schema_info.ModuleInfo):
        def __init__(self, *args: Any) -> None:
            nonlocal num_made
            num_made += 1
            super().__init__(*args)

    monkeypatch.setattr(schema_info, "ModuleInfo", Counting)
    service = SchemaService(front := front_end(tmp_path))
    for number in range(num_schemas):
        service.add(schema(f"s{number}", *"x" * num_modules))

    async def ask(request: Answer) -> None:
        for _ in range(3):
            answer = (await request("GET", ROUTE)).json()
            assert [len(one["modules"]) for one in answer["data"]] == [
                1 + num_modules
            ] * num_schemas
            assert answer["data"][0]["object"] == "prompt_schema"
            assert (await request("GET", f"{ROUTE}/s1")).json()["name"] == "s1"

    serve(front, Engine(), ask)
    assert num_made == num_schemas * (1 + num_modules)


def test_a_folder_that_cannot_be_written_is_an_answer(tmp_path: Path) -> None:
    folder = tmp_path / "schemas"
    folder.mkdir()
    front = front_end(folder)

    async def ask(request: Answer) -> None:
        body = {"schema": schema("a", "x")}
        assert (await request("POST", ROUTE, json=body)).status_code == 201
        folder.rename(tmp_path / "away")
        body = {"schema": schema("a", "y")}
        answers = [
            await request("PUT", f"{ROUTE}/a", json=body),
            await request("POST", ROUTE, json={"schema": schema("b", "y")}),
            await request("DELETE", f"{ROUTE}/a"),
        ]
        for answer in answers:
            assert answer.status_code == 500
            assert "could not be" in answer.json()["error"]["message"]
            assert ": No such file" in answer.json()["error"]["message"]
        assert (await request("GET", f"{ROUTE}/a")).status_code == 200
        (tmp_path / "away").rename(folder)
        assert (await request("PUT", f"{ROUTE}/a", json=body)).status_code == 200
        assert (await request("DELETE", f"{ROUTE}/a")).status_code == 204
        assert (await request("GET", f"{ROUTE}/a")).status_code == 404

    serve(front, Engine(), ask)
