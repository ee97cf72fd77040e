"""What is encoded for nobody, beside users: when, how much of it a step has, when it ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import perf_counter

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request, RequestStatus

from vllm_promptcache.core.promotion.pace import Pace
from vllm_promptcache.core.residency import ModuleResidency


@dataclass(frozen=True, slots=True)
class Step:
    """A step while something is encoded for nobody.

    Attributes:
        output: vLLM's.
        start_s: When it began to be scheduled.
        num_tokens: Tokens that are computed for nobody.
        is_alone: Whether it has no user's request.
    """

    output: SchedulerOutput
    start_s: float
    num_tokens: int
    is_alone: bool


class Background:
    """Gives promotion what steps of users leave.

    It is computed where all users decode, so that it makes no prompt wait. What it holds is for
    users as soon as one of them waits for it.

    Args:
        residency: The modules and their requests.
        pace: Says how many tokens a step may have.
        is_chunked: Whether a prefill may take several steps. If not, it runs while there is no
            user's request.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        residency: ModuleResidency,
        pace: Pace,
        *,
        is_chunked: bool,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._residency = residency
        self._pace = pace
        self._is_chunked = is_chunked
        self._clock = clock
        # Those that were scheduled last, a few where they overlap.
        self._steps: deque[Step] = deque(maxlen=8)
        self._start_s = self._last_s = 0.0
        self._is_alone = self._is_calm = self._is_waited_for = False
        # Tokens that the step may have for nobody, and those of them that are left.
        self._num_tokens = self._num_left = 0

    def start_step(self, running: list[Request], waiting: Iterable[Request]) -> list[Request]:
        """Begins a step; returns new encodes, to be put ahead of the queue in this order.

        Args:
            running: Requests that run. Mutated: what is for nobody goes last, so that it is the
                first to be preempted.
            waiting: The waiting queue.
        """
        self._start_s = self._clock()
        self._num_tokens = self._num_left = 0
        residency, is_ours = self._residency, self._residency.is_for_nobody
        if not residency.for_nobody:
            return []
        users = [request for request in running if not is_ours(request)]
        if len(users) < len(running):
            running.sort(key=is_ours)
        self._is_waited_for = any(not is_ours(request) for request in waiting)
        self._is_alone = not users and not self._is_waited_for
        is_calm = not self._is_waited_for and not any(user.is_prefill_chunk for user in users)
        self._is_calm = is_calm and (self._is_alone or self._is_chunked)
        new = residency.encode_for_nobody(is_idle=self._is_alone) if self._is_calm else []
        if self._is_calm and residency.encodes.for_nobody is not None:
            self._num_tokens = self._num_left = self._pace.num_tokens(is_alone=self._is_alone)
        return new

    def in_the_way(self, *, is_full: bool) -> str | None:
        """Returns the id of an encode for nobody that is to be aborted for users.

        Args:
            is_full: Whether there is no place for a request more.
        """
        encode = self._residency.encodes.for_nobody
        if encode is None or encode.waiters or self._is_alone:
            return None
        request = encode.request
        is_wanted = is_full or self._residency.is_short_of_room or request.lora_request is not None
        has_lost = request.status == RequestStatus.PREEMPTED
        is_in_the_way = has_lost or not self._is_chunked or (is_wanted and self._is_waited_for)
        return encode.request_id if is_in_the_way else None

    def holds_back(self, request: Request) -> bool:
        """Whether a request must not be admitted in this step, since it is for nobody."""
        if self._num_left or self._residency.encodes.for_nobody is None or not self._is_chunked:
            return False
        return self._residency.is_for_nobody(request)

    @property
    def limit(self) -> Callable[[Request, int], int] | None:
        """Says how many of so many tokens of a request the step may have; None for all."""
        is_under_way = self._residency.encodes.for_nobody is not None
        return self._take if is_under_way and self._is_chunked else None

    def _take(self, request: Request, num_tokens: int) -> int:
        if not self._residency.is_for_nobody(request):
            return num_tokens
        num_taken = min(num_tokens, self._num_left)
        self._num_left -= num_taken
        return num_taken

    def scheduled(self, output: SchedulerOutput) -> None:
        """Takes note of a step that was scheduled."""
        if self._is_calm and self.limit is not None:
            num_taken = self._num_tokens - self._num_left
            self._steps.append(Step(output, self._start_s, num_taken, self._is_alone))

    def ended(self, output: SchedulerOutput) -> None:
        """Takes note of a step that was computed."""
        now_s = self._clock()
        if self._steps and self._steps[0].output is output:
            step = self._steps.popleft()
            # With asynchronous scheduling it was scheduled while the one before it was computed.
            seconds = now_s - max(step.start_s, self._last_s)
            self._pace.took(seconds, step.num_tokens, is_alone=step.is_alone)
        self._last_s = now_s
