"""Routes for schemas: `/v1/prompt_schemas`.

vLLM's API key guards all of `/v1`. Bodies are read here, piece by piece, so that a huge one is
refused before it is in memory; schemas are compiled and described in threads, so that answers go on
meanwhile.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_promptcache.compat.wrap import wrap
from vllm_promptcache.config import PromptModulesConfig, admin_key
from vllm_promptcache.entrypoints.background import follow, while_connected
from vllm_promptcache.entrypoints.engine_modules import EngineModules
from vllm_promptcache.entrypoints.error_response import error_response
from vllm_promptcache.entrypoints.pinning import make_pin
from vllm_promptcache.entrypoints.schema_limits import SchemaLimits
from vllm_promptcache.entrypoints.schema_service import Change, SchemaService
from vllm_promptcache.entrypoints.shadow import ShadowCheck
from vllm_promptcache.errors import (
    ClientError,
    ForbiddenError,
    PromptCacheError,
    TooLargeError,
    UnauthorizedError,
)
from vllm_promptcache.layout import SchemaLayout
from vllm_promptcache.pml import DEFAULT_LIMITS, Pin, quote

ADMIN_HEADER = "x-prompt-schemas-admin-key"
# JSON may write a character as six.
MAX_BODY_BYTES = 6 * DEFAULT_LIMITS.max_document_bytes
_Body = TypeVar("_Body", bound=BaseModel)
T = TypeVar("T")


class SchemaBody(BaseModel):
    """Body of POST and PUT.

    Attributes:
        text: The schema in PML, called `schema` in JSON.
        warm: Encode its modules now, not when the first prompt imports them.
        pin: Encode them now and keep them in the KV cache, whatever the document says.
        ttl: For how long they are pinned, such as `1h`.
        cache_salt: The tenant for whom a private schema is warmed.
    """

    model_config = ConfigDict(extra="forbid")

    text: str = Field(alias="schema")
    warm: bool = False
    pin: bool = False
    ttl: str | None = None
    cache_salt: str | None = None


class ExplainBody(BaseModel):
    """Body of `explain`.

    Attributes:
        prompt: A prompt in PML.
        cache_salt: The tenant, for a private schema.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: str
    cache_salt: str | None = None


@dataclass(frozen=True, slots=True)
class SchemaRoutes:
    """Handlers of one API server.

    Attributes:
        service: Adds, replaces and removes schemas.
        modules: The engine's modules.
        read_only: Whether writing is refused.
        admin_key: What a writer must know, empty for nothing.
        writing: Held while schemas are written.
    """

    service: SchemaService
    modules: EngineModules
    read_only: bool = False
    admin_key: str = ""
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def post(self, request: Request) -> Response:
        """Adds a schema: 201, or 200 if it is there already."""
        self._check_writer(request)
        body = await _read(request, SchemaBody)
        pin = make_pin(wanted=body.pin, ttl=body.ttl)
        change = await self._write(self.service.add, body.text)
        return await self._written(request, change, body, pin)

    async def put(self, request: Request) -> Response:
        """Adds or replaces a schema: 201 or 200."""
        self._check_writer(request)
        body = await _read(request, SchemaBody)
        name, pin = request.path_params["name"], make_pin(wanted=body.pin, ttl=body.ttl)
        change = await self._write(self.service.replace, name, body.text)
        return await self._written(request, change, body, pin)

    async def _write(self, write: Callable[..., T], *args: str) -> T:
        """Calls a writing method of the service in a thread: one, however many wait."""
        async with self.writing:
            return await asyncio.to_thread(write, *args)

    async def _written(
        self, request: Request, change: Change, body: SchemaBody, pin: Pin | None
    ) -> Response:
        await while_connected(request, self._prepare(change.layout, body, pin))
        counts = {
            "num_changed_tokens": change.num_changed_tokens,
            "num_kept_tokens": change.num_kept_tokens,
        }
        status = 201 if change.is_new else 200
        return await _json(lambda: self.service.describe(change.layout) | counts, status)

    async def _prepare(self, layout: SchemaLayout, body: SchemaBody, pin: Pin | None) -> None:
        try:
            is_pinned = await self.modules.pin(layout, pin)
            if body.warm or is_pinned:
                await self.modules.warm(layout, body.cache_salt)
        except ClientError as error:
            await self.modules.unpin(layout.name)
            message = (
                f"schema {quote(layout.name)} is written, but not pinned or warm: {error.message}"
            )
            raise type(error)(message, error.hint) from None

    async def get(self, request: Request) -> Response:
        """Describes a schema and what of it is resident."""
        layout = await asyncio.to_thread(self.service.layout, request.path_params["name"])
        found = await self.modules.status(layout)

        def describe() -> dict[str, Any]:
            described = self.service.describe(layout)
            if found:
                pairs = zip(described["modules"], found, strict=True)
                described["modules"] = [asdict(info) | asdict(status) for info, status in pairs]
            return described

        return await _json(describe)

    async def get_all(self, request: Request) -> Response:
        """Lists all schemas."""

        def describe() -> dict[str, Any]:
            data = [self.service.describe(layout) for layout in self.service.layouts()]
            return {"object": "list", "data": data}

        return await _json(describe)

    async def delete(self, request: Request) -> Response:
        """Removes a schema: 204."""
        self._check_writer(request)
        name = request.path_params["name"]
        await self._write(self.service.remove, name)
        await self.modules.unpin(name)
        return Response(status_code=204)

    async def explain(self, request: Request) -> Response:
        """Lays out a prompt: what is reused, encoded and computed."""
        body = await _read(request, ExplainBody)
        name = request.path_params["name"]
        await asyncio.to_thread(self.service.layout, name)
        return JSONResponse(await self.modules.explain(name, body.prompt, body.cache_salt))

    def _check_writer(self, request: Request) -> None:
        if self.read_only:
            message = "this server's schemas are read-only"
            raise ForbiddenError(message, "start it without --prompt-schemas-read-only")
        given = request.headers.get(ADMIN_HEADER, "")
        if not hmac.compare_digest(given.encode(), self.admin_key.encode()):
            raise UnauthorizedError(f"a schema is written with the header {ADMIN_HEADER}")


class SchemaEndpoints:
    """Plugs the routes into vLLM's API server; see `EndpointPlugin` there."""

    name = "prompt_schemas"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Adds the routes; their state follows in `init_state`."""
        router = APIRouter(tags=["Prompt schemas"])
        one = "/v1/prompt_schemas/{name}"
        for method, path, handler in (
            ("POST", "/v1/prompt_schemas", SchemaRoutes.post),
            ("GET", "/v1/prompt_schemas", SchemaRoutes.get_all),
            ("GET", one, SchemaRoutes.get),
            ("PUT", one, SchemaRoutes.put),
            ("DELETE", one, SchemaRoutes.delete),
            ("POST", f"{one}/explain", SchemaRoutes.explain),
        ):
            router.add_api_route(path, _guarded(handler), methods=[method])
        app.include_router(router)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Makes the handlers of this server."""
        vllm_config = engine_client.vllm_config
        config = PromptModulesConfig.of(vllm_config)
        front_end = engine_client.renderer.front_end
        num_servers = vllm_config.parallel_config._api_process_count
        modules = EngineModules(front_end, engine_client)
        # Kept there, since the event loop itself keeps no task alive.
        state.prompt_schemas_start = asyncio.create_task(modules.start())
        state.prompt_schemas_follow = asyncio.create_task(follow(front_end))
        state.prompt_schemas = SchemaRoutes(
            SchemaService(front_end, num_servers, _limits(config)),
            modules,
            read_only=config.schemas_read_only,
            admin_key=admin_key(),
        )
        if config.shadow:
            shadow = ShadowCheck(front_end, engine_client.generate, config.shadow)
            wrap(engine_client, "generate", shadow.watch)
            state.shadow_check = asyncio.create_task(shadow.run())


def _limits(config: PromptModulesConfig) -> SchemaLimits:
    return SchemaLimits(config.max_schemas, int(config.max_schemas_size * 2**30))


def _guarded(
    handler: Callable[[SchemaRoutes, Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        try:
            return await handler(request.app.state.prompt_schemas, request)
        except PromptCacheError as error:
            return error_response(error)

    handle.__name__ = handler.__name__
    handle.__doc__ = handler.__doc__
    return handle


async def _json(describe: Callable[[], dict[str, Any]], status: int = 200) -> Response:
    """Describes schemas and writes them down, both in a thread: there may be thousands of modules.

    Args:
        describe: What is answered.
        status: The HTTP status.
    """
    body = await asyncio.to_thread(lambda: msgspec.json.encode(describe()))
    return Response(body, status, media_type="application/json")


async def _read(request: Request, model: type[_Body]) -> _Body:
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_BODY_BYTES:
            raise TooLargeError(f"the body has more than {MAX_BODY_BYTES} bytes")
    try:
        if "xml" in request.headers.get("content-type", ""):
            return model.model_validate({"schema": data.decode()})
        return model.model_validate_json(bytes(data))
    except (ValidationError, UnicodeDecodeError) as error:
        problem = error.errors()[0] if isinstance(error, ValidationError) else None
        place = ".".join(map(str, problem["loc"])) if problem else "body"
        raise ClientError(f"{place or 'body'}: {problem['msg'] if problem else error}") from None
