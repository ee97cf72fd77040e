"""Warming: the engine encodes all modules of a schema ahead of the prompts that import them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from vllm_promptcache.errors import ConflictError
from vllm_promptcache.layout import SchemaLayout
from vllm_promptcache.log import module_logger
from vllm_promptcache.plan import PromptPlan
from vllm_promptcache.pml import quote

# Enough to fill an engine's steps, few enough that a user's request waits for next to none of them.
NUM_IN_FLIGHT = 4
_SECONDS_BETWEEN_REPORTS = 10.0

logger = module_logger(__name__)


@dataclass(slots=True)
class Warming:
    """Sends the plans of one schema, a few at a time; ends early if it is cancelled.

    Attributes:
        layout: The schema.
        plans: What warms it; made one by one, in a thread.
        encode: Sends a plan to the engine and returns when it is done.
        is_current: Whether the schema is still served.
    """

    layout: SchemaLayout
    plans: Iterator[PromptPlan]
    encode: Callable[[PromptPlan], Awaitable[None]]
    is_current: Callable[[], bool]
    _num_done: int = 0
    _reported: float = field(default_factory=time.monotonic)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self) -> None:
        """Encodes all modules.

        Raises:
            ConflictError: The schema was replaced or removed meanwhile.
        """
        tasks = [asyncio.create_task(self._work()) for _ in range(NUM_IN_FLIGHT)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self) -> None:
        while (plan := await self._next()) is not None:
            if not self.is_current():
                raise ConflictError(
                    f"schema {quote(self.layout.name)} was replaced or removed while it was warmed"
                )
            await self.encode(plan)
            self._num_done += 1
            self._report()

    async def _next(self) -> PromptPlan | None:
        async with self._lock:
            return await asyncio.to_thread(next, self.plans, None)

    def _report(self) -> None:
        if time.monotonic() - self._reported > _SECONDS_BETWEEN_REPORTS:
            self._reported = time.monotonic()
            num_modules = len(self.layout.modules)
            logger.info("Warming %s: %d of %d", self.layout.name, self._num_done, num_modules)
