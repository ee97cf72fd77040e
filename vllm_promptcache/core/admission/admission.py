"""Which waiting requests come near admission, and which must wait for room in the pool."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.request import Request

from vllm_promptcache.core.admission.units import Near, Unit, Units
from vllm_promptcache.core.request import EncodeRequest, InternalRequest, ModularRequest
from vllm_promptcache.errors import PlanError

# Users' requests at the head of the queue whose modules are encoded and pinned ahead of their
# admission. More would let waiting requests hold the pool; fewer would encode one module at a time.
HORIZON = 64


class Admission:
    """The head of the waiting queue in one step, as far as it fits the pool together.

    What is admitted are units: a user's request with the encodes, and the probe, that it waits for.
    They are near in the order of the queue, each with the most blocks that it takes at one time.
    The first one that does not fit closes the pool: behind it nothing is admitted or pinned.

    **No request waits for ever.** Take the first one in the queue. Better ones that come later go
    ahead of it, and preempted ones as well, both as in plain vLLM.

    1. While it does not fit, nothing is admitted and no waiting request holds a module. What runs
       ends: as in plain vLLM the best of the running requests is never preempted, for the blocks
       that they still need for their prompts, and one more for each, are kept from those that wait.
       When nothing runs, pins give way, and all blocks are free. Then it fits, since a request for
       which a cache of this size is too small is rejected on arrival, its modules, their contexts
       and encodes counted (`plan.room`).
    2. Once it fits, no other unit gets the blocks that it still needs, and it pins its modules as
       they become resident. Where blocks are just enough, these are made resident one by one in
       the order of `plan.room.in_best_order`, and it holds only those before the first that is
       missing. So there is room for the next encode, and each one that ends adds to what it holds.
    3. What runs beside it may grow and take blocks that it needs. Then 1 holds again, and from then
       on it goes alone: nothing is admitted beside it that could grow.

    Two requests cannot evict each other's modules for ever: the first one keeps its own. It makes
    no difference where these come from. One that is relocated has its origin encoded, which moves
    itself where there is no room for a copy; one in host memory or on disk takes no more than its
    encode; of a chain, modules before one are its contexts. An abort lets go of what a request
    holds, encodes that nobody else waits for are aborted with it. An encode has the rank of the
    best request that waits for it (`Encodes.join`), so no queue has it behind worse ones for long.

    A request that has generated tokens may need more than the cache has if it has to be admitted
    again, since its modules' tails are then there twice. Such a one runs alone, and thus is never
    preempted.

    Args:
        pool: vLLM's block pool.
        block_size: Tokens a block.
        units: Says what a request may have, and how many blocks it takes.
        requests: The state of all requests that read modules, by id.
        rejected: Request id -> why it cannot be served; filled here.

    Attributes:
        blocked: The first users' request in the queue if it is blocked, else None.
        is_short: Whether any of them is blocked.
    """

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        units: Units,
        requests: Mapping[str, ModularRequest],
        rejected: dict[str, str],
    ) -> None:
        self.blocked: Request | None = None
        self.is_short = False
        self._pool = pool
        self._block_size = block_size
        self._units = units
        self._requests = requests
        self._rejected = rejected
        self._near: set[str] = set()
        # Those of them that vLLM has not come to in this step.
        self._ahead: set[str] = set()
        self._is_closed = False
        self._alone: str | None = None

    def start_step(self) -> None:
        """Forgets which requests were near and which was blocked in the last step."""
        self._near, self._ahead, self.blocked = set(), set(), None
        self.is_short = False
        self._is_closed = self._alone is not None

    def near(
        self,
        waiting: Iterable[Request],
        num_running: int,
        num_reserved: int,
        held: Collection[str],
    ) -> list[Near]:
        """Those who may have their modules now, the units in the order of the queue.

        Args:
            waiting: The waiting queue, head first.
            num_running: Running requests of users.
            num_reserved: Free blocks that running requests are about to take.
            held: Ids of requests that have pinned all of their modules.
        """
        room = self._pool.get_num_free_blocks() - num_running - num_reserved
        near: list[Near] = []
        keys: set[bytes] = set()
        for request in self._in_turn(waiting):
            is_first = not self._near
            is_open = self._is_open(request, is_idle=is_first and not num_running)
            if not is_open or (unit := self._unit(request, room, keys, held, is_first)) is None:
                self._block(request, is_first=is_first)
                break
            room -= unit.num_blocks
            keys.update(unit.keys)
            near += [m for m in unit.members if m.modular.request_id not in self._near]
            self._near.add(request.request_id)
            self._near.update(member.modular.request_id for member in unit.members)
            self._is_closed = self._goes_alone(request)
        self._ahead = set(self._near)
        return near

    def admitted(self, modular: ModularRequest) -> None:
        """Takes note that a request has its blocks."""
        modular.was_disturbed = False
        if modular.runs_alone:
            self._alone = modular.request_id

    def stopped(self, modular: ModularRequest) -> None:
        """Takes note that a request has lost its blocks, or has none any more."""
        if self._alone == modular.request_id:
            self._alone = None

    @property
    def is_one_alone(self) -> bool:
        """Whether a request is running that nothing may make wait."""
        return self._alone is not None

    def holds_back(self, request: Request) -> bool:
        """Whether `request`, the next one in the queue, must not be admitted in this step."""
        if request.request_id in self._near:
            return False
        internal = self._requests.get(request.request_id)
        return self._is_closed or isinstance(internal, InternalRequest)

    def is_over(self, request: Request) -> bool:
        """Whether none behind `request`, which vLLM has come to, can be admitted in this step.

        Those who are near need not be first in the queue: a preempted request goes ahead of the
        encode that a better one waits for.
        """
        self._ahead.discard(request.request_id)
        return self._is_closed and not self._ahead

    def allow(self, internal: InternalRequest) -> None:
        """Lets one of our own requests in that was started for one that is near."""
        self._near.add(internal.request_id)
        self._ahead.add(internal.request_id)

    def _in_turn(self, waiting: Iterable[Request]) -> Iterator[Request]:
        """Users' requests at the head of the queue; behind all of them, encodes for nobody."""
        ours, num_users = [], 0
        for request in waiting:
            internal = self._requests.get(request.request_id)
            if isinstance(internal, InternalRequest):
                ours.append(internal)
            elif request.request_id not in self._rejected:
                yield request
                num_users += 1
                if num_users == HORIZON:
                    return
        for internal in ours:
            if isinstance(internal, EncodeRequest) and not internal.waiters & self._requests.keys():
                yield internal.request

    def _is_open(self, request: Request, *, is_idle: bool) -> bool:
        modular = self._requests.get(request.request_id)
        return not self._is_closed and (modular is None or not modular.runs_alone or is_idle)

    def _goes_alone(self, request: Request) -> bool:
        modular = self._requests.get(request.request_id)
        return modular is not None and (modular.runs_alone or modular.was_disturbed)

    def _block(self, request: Request, *, is_first: bool) -> None:
        self._is_closed = True
        modular = self._requests.get(request.request_id)
        self.is_short = not isinstance(modular, InternalRequest)
        if not is_first:
            return
        self.blocked = request
        if modular is not None and modular.account.has_waited:
            modular.was_disturbed = True

    def _unit(
        self,
        request: Request,
        room: int,
        others: Collection[bytes],
        held: Collection[str],
        is_first: bool,
    ) -> Unit | None:
        modular = self._requests.get(request.request_id)
        if modular is None:
            num_blocks = -(-request.num_tokens // self._block_size)
            return Unit(num_blocks) if num_blocks <= room else None
        if request.request_id in held:
            unit = self._units.held(modular)
            return unit if unit.num_blocks <= room else None
        try:
            return self._units.fit(modular, room, others, is_first=is_first)
        except PlanError as error:
            self._rejected[request.request_id] = str(error)
            return Unit(0)
