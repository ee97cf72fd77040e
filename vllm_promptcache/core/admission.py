"""Which waiting requests come near admission, and which must wait for room in the pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.request import Request

from vllm_promptcache.core.request import InternalRequest, ModularRequest

# Requests at the head of the queue whose modules are encoded and pinned ahead of their admission.
# More would let waiting requests hold the pool; fewer would encode one module at a time.
HORIZON = 64


class Admission:
    """The head of the waiting queue in one step, as far as it fits the pool together.

    Args:
        pool: vLLM's block pool.
        get: Returns the state of a request that reads modules.
        demand: Blocks that must be free for a request and the modules that it waits for.
    """

    def __init__(
        self,
        pool: BlockPool,
        get: Callable[[Request], ModularRequest | None],
        demand: Callable[[Request, ModularRequest | None], int],
    ) -> None:
        self._pool = pool
        self._get = get
        self._demand = demand
        self._blocked: str | None = None
        self._is_behind_blocked = False
        self._near: set[str] = set()

    def start_step(self) -> None:
        """Forgets which requests were near and which was blocked in the last step."""
        self._blocked, self._is_behind_blocked = None, False
        self._near = set()

    def near(self, waiting: Iterable[Request], num_running: int) -> list[ModularRequest]:
        """The requests with modules at the head of the queue that fit the pool together.

        Args:
            waiting: The waiting queue, head first.
            num_running: Running requests; each may need a block in this step.
        """
        near: list[ModularRequest] = []
        room = self._pool.get_num_free_blocks() - num_running
        head = list(islice(waiting, HORIZON))
        # Others wait for our own requests, which a queue by priority may have behind them.
        head.sort(key=lambda request: not isinstance(self._get(request), InternalRequest))
        for request in head:
            modular = self._get(request)
            room -= self._demand(request, modular)
            # With nothing running, what holds the pool are pins: the first request gets all of it.
            if room < 0 and (near or num_running or modular is None):
                self._blocked = request.request_id if modular is not None else None
                break
            if modular is not None:
                near.append(modular)
        self._near = {modular.request_id for modular in near}
        return near

    def fits(self, request: Request) -> bool:
        """Whether a request and its modules fit the free blocks."""
        return self._demand(request, self._get(request)) <= self._pool.get_num_free_blocks()

    def is_behind_blocked(self, request: Request) -> bool:
        """Whether `request`, the next one in the queue, must not be admitted in this step.

        Behind a request that waits for room in the pool nobody is admitted: the modules it needs
        would be evicted again and again, and it would starve. A near one has been counted before.
        """
        self._is_behind_blocked |= request.request_id == self._blocked
        return self._is_behind_blocked and request.request_id not in self._near
