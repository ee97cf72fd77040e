"""A replica: an engine and vLLM's own API server for it, called without a network between."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from vllm_promptcache.compat.api_server import api_server, serve_arguments
from vllm_promptcache.distributed.file_tree import FileTree
from vllm_promptcache.distributed.hint import SCHEMAS_PATH, Hint
from vllm_promptcache.distributed.http import Head, HttpRequest, respond
from vllm_promptcache.distributed.residents import Residents
from vllm_promptcache.distributed.schema_copy import SchemaCopy
from vllm_promptcache.entrypoints.error_response import error_response
from vllm_promptcache.errors import ConflictError
from vllm_promptcache.log import module_logger
from vllm_promptcache.ranking import Summary

REPLICA_HEADER = "x-replica"
_SECONDS_BETWEEN_LOOKS = 0.5
_WRITES = ("POST", "PUT", "DELETE")

logger = module_logger(__name__)


class Replica:
    """Answers requests as `vllm serve` does, whose options it takes.

    Its schema folder is a copy of the registry's, so that what is written through one replica is in
    all of them when the writer is answered. Serve awaits its constructor, and runs it in the loop
    in which the engine is used.

    Args:
        options: What stands behind `vllm serve`, without `--prompt-schemas`.
        registry: Of `RegistryDeployment`.
    """

    async def __init__(  # type: ignore[misc]
        self, options: Sequence[str], registry: DeploymentHandle
    ) -> None:
        self._name = serve.get_replica_context().replica_id.unique_id
        self._ends = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        folder = self._ends.enter_context(tempfile.TemporaryDirectory(prefix="prompt-schemas-"))
        tree = FileTree(Path(folder))
        self._copy = SchemaCopy(self._name, tree, registry.changes.remote, registry.put.remote)
        await self._copy.pull()
        args = serve_arguments([*options, "--prompt-schemas", folder])
        self._app: FastAPI = await self._ends.enter_async_context(api_server(args))
        self._summary = Summary()
        self._tasks += map(asyncio.create_task, (self._copy.follow(), self._look()))

    async def __del__(self) -> None:
        """Ends the engine, when Serve has let all requests end."""
        for task in self._tasks:
            task.cancel()
        await self._ends.aclose()

    async def check_health(self) -> None:
        """Raises if the engine has died; Serve then starts another replica."""
        await self._app.state.engine_client.check_health()

    def record_routing_stats(self) -> dict[str, Any]:
        """What this replica holds, for routers: the fields of a `Summary`."""
        return asdict(self._summary)

    async def respond(self, hint: Hint | None, request: HttpRequest) -> AsyncIterator[Head | bytes]:
        """Answers a request: its head, then its body in pieces.

        Args:
            hint: For the router; not read here.
            request: As it came to the ingress.
        """
        answer = respond(self._app, request)
        is_write = request.path.startswith(SCHEMAS_PATH) and request.method in _WRITES
        async for piece in answer:
            if not isinstance(piece, Head):
                yield piece
                continue
            if is_write and not await self._copy.publish():
                await answer.aclose()
                answer = respond(error_response(_CONFLICT), request)
                async for part in answer:
                    yield part
                return
            yield piece.with_header(REPLICA_HEADER, self._name)

    async def _look(self) -> None:
        """Keeps what routers are told up to date; does not end."""
        residents = Residents(self._app.state.prompt_schemas.modules)
        while True:
            try:
                self._summary = await residents.summary()
            # Routers go by what they know; that the engine has died shows in `check_health`.
            except Exception:
                logger.exception("What this replica holds could not be told.")
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)


_CONFLICT = ConflictError("the schema was written elsewhere at the same time", "write it again")
