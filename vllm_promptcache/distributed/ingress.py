"""The address of an app: sends each request to a replica, and once more if that has died."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from vllm_promptcache.distributed.hint import Hint
from vllm_promptcache.distributed.http import Head, HttpRequest, split
from vllm_promptcache.entrypoints.error_response import error_response
from vllm_promptcache.errors import NotFoundError, ServerError, TooLargeError
from vllm_promptcache.log import module_logger

MAX_BODY_BYTES = 256 << 20
"""Of a request: it is in memory before it is sent on."""

MAX_NUM_TRIES = 3
"""Replicas that a request may lose by their death before its client is told."""

# What vLLM's API key guards, and what load balancers ask for.
_PATHS = ("/v1/", "/health", "/version")
_EVENTS = "text/event-stream"
_DIED = ServerError("the replica that was answering has died", "send the request again")
_BUSY = ServerError("all replicas are busy, and too many requests wait", "try again later")

logger = module_logger(__name__)


async def _begun(pieces: AsyncIterator[Head | bytes]) -> Response:
    """An answer whose body has begun; all of it where it is no stream of events.

    Raises:
        RayActorError: The replica has died before.
    """
    head, body = await split(pieces)
    if head.media_type == _EVENTS:
        first = await anext(body, b"")
        response: Response = StreamingResponse(_events(first, body), head.status)
    else:
        response = Response(b"".join([piece async for piece in body]), head.status)
    response.raw_headers = list(head.headers)
    return response


async def _events(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The rest of a stream; ends with an error of OpenAI's form if the replica dies."""
    try:
        yield first
        async for piece in rest:
            yield piece
    except RayActorError:
        error = {"message": str(_DIED), "type": type(_DIED).__name__, "code": 503}
        yield b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"


async def _read(request: Request) -> bytes | None:
    """The body of a request; None if it is too large."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_BODY_BYTES:
            return None
    return bytes(data)


app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)


# Serve takes a copy of the app right here: what its routes call must stand above.
@serve.ingress(app)
class Ingress:
    """Knows nothing of models: replicas check keys and bodies, and answer as one machine does.

    Args:
        replicas: Of `Replica`.
    """

    def __init__(self, replicas: DeploymentHandle) -> None:
        self._replicas = replicas.options(stream=True)

    @app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE"])
    async def answer(self, request: Request) -> Response:
        """Answers any request of the OpenAI API, and those for schemas."""
        path = request.url.path
        if not path.startswith(_PATHS):
            return error_response(NotFoundError(f"there is no {path}"))
        if (body := await _read(request)) is None:
            return error_response(TooLargeError(f"the body has more than {MAX_BODY_BYTES} bytes"))
        query = request.url.query.encode()
        sent = HttpRequest(request.method, path, query, tuple(request.headers.raw), body)
        return await self._answer(sent)

    async def ask(self, request: HttpRequest) -> tuple[int, bytes]:
        """Answers a request that is no stream, from inside the cluster: status and body."""
        response = await self._answer(request)
        return response.status_code, bytes(response.body)

    async def _answer(self, request: HttpRequest) -> Response:
        hint = Hint.of(request)
        for _ in range(MAX_NUM_TRIES):
            pieces = self._replicas.respond.remote(hint, request)
            try:
                return await _begun(pieces)
            except BackPressureError:
                return error_response(_BUSY, 503)
            except RayActorError as error:
                # Its client has seen nothing of it yet.
                logger.warning("A request is sent again: %s", type(error).__name__)
        return error_response(_DIED, 503)
