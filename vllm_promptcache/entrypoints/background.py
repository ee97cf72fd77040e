"""What an API server does beside answering: it follows its schema folder, and its clients."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from fastapi import Request

from vllm_promptcache.entrypoints.front_end import FrontEnd
from vllm_promptcache.log import module_logger

SECONDS_BETWEEN_LOOKS = 1.0

logger = module_logger(__name__)


async def follow(front_end: FrontEnd) -> None:
    """Takes over what other API servers have changed, so that prompts find it compiled."""
    while True:
        try:
            await asyncio.to_thread(front_end.sync)
        # Whatever it is, the next change may be a good one.
        except Exception:
            logger.exception("The schema folder could not be followed.")
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


async def while_connected(request: Request, work: Coroutine[Any, Any, None]) -> None:
    """Does some work for as long as the client that has asked for it is there.

    Args:
        request: Its request, which has been read.
        work: Is cancelled when the client goes away.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        else:
            logger.info("A client has gone, so what it has asked for is not done.")
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
