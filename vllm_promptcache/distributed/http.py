"""An HTTP request and its answer on their way between an ingress and a replica."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    MutableMapping,
)
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

from anyio import create_memory_object_stream
from anyio.streams.memory import MemoryObjectSendStream

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]
AsgiApp: TypeAlias = Callable[..., Awaitable[None]]
Message: TypeAlias = MutableMapping[str, Any]

# Pieces of an answer that wait for a client that reads slowly.
_MAX_NUM_PIECES = 64
# An app that was told that its client has gone may take so long to end.
_SECONDS_TO_END = 10.0


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request as ASGI has it, with its whole body.

    Attributes:
        method: In capitals.
        path: Decoded.
        query: As it was sent.
        headers: Names in small letters.
        body: As it was sent.
    """

    method: str
    path: str
    query: bytes = b""
    headers: Headers = ()
    body: bytes = b""

    def scope(self) -> dict[str, Any]:
        """The request's ASGI scope, without its body."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": self.query,
            "root_path": "",
            "headers": list(self.headers),
            "client": None,
            "server": None,
        }


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of an answer: its status and its headers."""

    status: int
    headers: Headers = ()

    def with_header(self, name: str, value: str) -> Head:
        """The same with one more header."""
        return replace(self, headers=(*self.headers, (name.encode(), value.encode())))

    @property
    def media_type(self) -> str:
        """The type of the body, without parameters; empty if there is none."""
        value = dict(self.headers).get(b"content-type", b"").decode("latin-1")
        return value.partition(";")[0].strip()


async def split(answer: AsyncIterator[Head | bytes]) -> tuple[Head, AsyncIterator[bytes]]:
    """The head of an answer, once it is there, and the pieces of its body."""
    head = await anext(answer)
    return cast(Head, head), cast(AsyncIterator[bytes], answer)


async def respond(app: AsgiApp, request: HttpRequest) -> AsyncGenerator[Head | bytes]:
    """Runs an ASGI app on a request, without a network between.

    Yields:
        The head, then the body in pieces, none of them empty. Closing the iterator cancels the app,
        as vLLM does when a client has gone.

    Raises:
        Exception: What the app raises.
    """
    send, messages = create_memory_object_stream[Message](_MAX_NUM_PIECES)
    task = asyncio.create_task(_run(app, request, send))
    try:
        async for message in messages:
            if message["type"] == "http.response.start":
                headers = tuple((bytes(name), bytes(value)) for name, value in message["headers"])
                yield Head(message["status"], headers)
            elif body := message.get("body"):
                yield bytes(body)
        await task
    finally:
        messages.close()
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await asyncio.wait_for(task, _SECONDS_TO_END)


async def _run(
    app: AsgiApp, request: HttpRequest, messages: MemoryObjectSendStream[Message]
) -> None:
    body = [request.body]

    async def receive() -> Message:
        if body:
            return {"type": "http.request", "body": body.pop(), "more_body": False}
        # The client is there for as long as the answer is wanted.
        return await asyncio.Future()

    async with messages:
        await app(request.scope(), receive, messages.send)
