"""Threads in which an API server plans prompts, so that its event loop answers others meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Two, so that a short prompt overtakes a long one. More would not plan faster: planning is Python,
# which runs in one thread at a time, and each further one takes turns with the event loop.
NUM_THREADS = 2


class PlanningPool:
    """A few threads with a queue of their own.

    Not those of asyncio, which compile schemas and read files as well: a prompt would wait for
    them. Threads start when they are needed, and end with the pool.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="plan-prompts")

    async def run(self, plan: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls `plan` in one of the threads, with the context variables of the caller.

        Raises:
            Exception: Whatever `plan` raises.
        """
        # What a request says beside its prompt is in context variables, see `request_options`.
        context = copy_context()
        loop = asyncio.get_running_loop()
        call = partial(context.run, plan, *args, **kwargs)
        return await loop.run_in_executor(self._threads, call)
