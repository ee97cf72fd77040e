"""An app that is called without a network answers as it does over one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from vllm_promptcache.distributed.http import Head, HttpRequest, respond, split

app = FastAPI()
ended = asyncio.Event()


@app.post("/echo/{name}")
async def echo(name: str, request: Request) -> dict[str, str]:
    body = (await request.body()).decode()
    return {"name": name, "q": request.query_params["q"], "key": request.headers["k"], "body": body}


@app.get("/endless")
async def endless() -> StreamingResponse:
    async def pieces() -> AsyncIterator[str]:
        try:
            while True:
                yield "data: x\n\n"
                await asyncio.sleep(0)
        finally:
            ended.set()

    return StreamingResponse(pieces(), media_type="text/event-stream; charset=utf-8")


@app.get("/broken")
async def broken() -> None:
    raise KeyError("broken")


def test_an_answer_has_all_of_the_request() -> None:
    async def run() -> tuple[Head, bytes]:
        request = HttpRequest("POST", "/echo/a b", b"q=1%202", ((b"k", b"v"),), b"{}")
        head, body = await split(respond(app, request))
        return head, b"".join([piece async for piece in body])

    head, body = asyncio.run(run())
    assert head.status == 200
    assert head.media_type == "application/json"
    assert body == b'{"name":"a b","q":"1 2","key":"v","body":"{}"}'


def test_a_client_that_goes_away_ends_the_app() -> None:
    async def run() -> None:
        ended.clear()
        answer = respond(app, HttpRequest("GET", "/endless"))
        head, body = await split(answer)
        assert head.media_type == "text/event-stream"
        assert await anext(body) == b"data: x\n\n"
        # The app is ahead of who reads slowly by so many pieces and no more.
        await asyncio.sleep(0.05)
        assert not ended.is_set()
        await answer.aclose()
        async with asyncio.timeout(1):
            await ended.wait()

    asyncio.run(run())


def test_what_an_app_raises_is_raised() -> None:
    async def run() -> None:
        async for _ in respond(app, HttpRequest("GET", "/broken")):
            pass

    with pytest.raises(KeyError, match="broken"):
        asyncio.run(run())


def test_one_more_header() -> None:
    head = Head(200, ((b"a", b"b"),)).with_header("x-replica", "r")
    assert head.headers == ((b"a", b"b"), (b"x-replica", b"r"))
