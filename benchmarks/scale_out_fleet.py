"""A fleet of replicas and its routers as a discrete-event simulation, see `scale_out`."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count
from random import Random
from time import perf_counter

from benchmarks.scale_out_policies import Policy
from benchmarks.scale_out_traffic import ENCODE_S_PER_TOKEN, WARM_S, Request
from vllm_promptcache.ranking import Summary

KV_CACHE_TOKENS = 64_000
NUM_ROUTERS = 4
REPORT_EVERY_S = 1.0
# Mean, of a replica in a fleet with churn.
LIFETIME_S = 1200.0
# Two replicas took so long to start.
START_S = 67.0


@dataclass(slots=True)
class Served:
    """What became of a request.

    Attributes:
        request: The request.
        router: The router that sent it.
        started: When a replica took it up, in seconds.
        first_token: When its first token came.
        num_hits: Modules that were resident then.
        num_hit_tokens: Their tokens.
    """

    request: Request
    router: int
    started: float = 0.0
    first_token: float = 0.0
    num_hits: int = 0
    num_hit_tokens: int = 0


@dataclass(slots=True)
class Replica:
    """A replica: serves one request after the other, and forgets modules used longest ago.

    Attributes:
        name: Its name.
        since: When it came up, in seconds.
        until: When it went down, or None.
        queue: Requests at it; the first one is being served.
        busy: From when to when it computed each request that it has answered.
    """

    name: str
    since: float
    until: float | None = None
    queue: deque[Served] = field(default_factory=deque)
    busy: list[tuple[float, float]] = field(default_factory=list)
    _modules: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    _num_tokens: int = 0
    _is_changed: bool = False

    def serve(self, served: Served, now: float) -> float:
        """Takes up a request; returns when its first token comes."""
        tokens = served.request.tokens
        served.num_hits = sum(key in self._modules for key in tokens)
        missing = {key: number for key, number in tokens.items() if key not in self._modules}
        served.num_hit_tokens = served.request.num_tokens - sum(missing.values())
        self._modules.update(missing)
        self._num_tokens += sum(missing.values())
        for key in tokens:
            self._modules.move_to_end(key)
        while self._num_tokens > KV_CACHE_TOKENS:
            self._num_tokens -= self._modules.popitem(last=False)[1]
        self._is_changed |= bool(missing)
        served.started = now
        served.first_token = now + WARM_S + ENCODE_S_PER_TOKEN * sum(missing.values())
        return served.first_token

    def summary(self) -> Summary | None:
        """What it says of its modules; None if they are the same as when it was asked last."""
        if not self._is_changed:
            return None
        self._is_changed = False
        return Summary.of(reversed(self._modules.items()))


class Fleet:
    """Replicas behind routers. Each router has a policy and a view of the loads of its own.

    Args:
        num_replicas: Replicas at the beginning.
        policies: The policy of each router.

    Attributes:
        replicas: All replicas, those that are gone too.
        served: The requests that have their first token, in that order.
        choices_s: Seconds that the policy took for each choice, on the machine that simulates.
    """

    def __init__(self, num_replicas: int, policies: list[Policy]) -> None:
        self.replicas: list[Replica] = []
        self.served: list[Served] = []
        self.choices_s: list[float] = []
        self._policies = policies
        self._up: dict[str, Replica] = {}
        self._names: tuple[str, ...] = ()
        # In the order of the names.
        self._loads: list[dict[str, float]] = [{} for _ in policies]
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._ties = count()
        self._random = Random(0)
        for _ in range(num_replicas):
            self._start(0.0)

    def run(self, requests: list[Request], has_churn: bool) -> None:
        """Runs until all requests have their first token."""
        if has_churn:
            every_s = LIFETIME_S / len(self._up)
            for number in range(1, int(requests[-1].arrival / every_s)):
                self._at(number * every_s, self._kill)
        for request in requests:
            while self._events[0][0] <= request.arrival:
                self._next()
            router = self._random.randrange(len(self._policies))
            self._send(Served(request, router), request.arrival)
        while len(self.served) < len(requests):
            self._next()

    def _at(self, when: float, event: Callable[[float], None]) -> None:
        heappush(self._events, (when, next(self._ties), event))

    def _next(self) -> None:
        when, _, event = heappop(self._events)
        event(when)

    def _start(self, now: float) -> None:
        replica = Replica(f"replica-{len(self.replicas)}", now)
        self.replicas.append(replica)
        self._up[replica.name] = replica
        self._names = tuple(self._up)
        for loads in self._loads:
            loads[replica.name] = 0.0
        # Replicas report in turn, not at once.
        self._at(now + REPORT_EVERY_S * self._random.random(), partial(self._report, replica))

    def _kill(self, now: float) -> None:
        """A replica goes away with its modules; its requests are sent again."""
        replica = self._up.pop(self._random.choice(self._names))
        replica.until = now
        self._names = tuple(self._up)
        for loads, policy in zip(self._loads, self._policies, strict=True):
            del loads[replica.name]
            policy.remove(replica.name)
        for served in replica.queue:
            self._send(served, now)
        self._at(now + START_S, self._start)

    def _report(self, replica: Replica, now: float) -> None:
        """All routers learn what is resident at a replica, and its load."""
        if replica.until is not None:
            return
        summary = replica.summary()
        for loads, policy in zip(self._loads, self._policies, strict=True):
            loads[replica.name] = len(replica.queue)
            if summary is not None:
                policy.report(replica.name, summary, now)
        self._at(now + REPORT_EVERY_S, partial(self._report, replica))

    def _send(self, served: Served, now: float) -> None:
        policy, loads = self._policies[served.router], self._loads[served.router]
        given = list(loads.values())
        since = perf_counter()
        name = self._names[policy.choose(served.request, self._names, given, now)]
        self.choices_s.append(perf_counter() - since)
        # A router knows at once what it sends and what is answered, the rest from reports.
        loads[name] += 1
        replica = self._up[name]
        replica.queue.append(served)
        if len(replica.queue) == 1:
            self._serve(replica, now)

    def _serve(self, replica: Replica, now: float) -> None:
        self._at(replica.serve(replica.queue[0], now), partial(self._answer, replica))

    def _answer(self, replica: Replica, now: float) -> None:
        if replica.until is not None:
            return
        served = replica.queue.popleft()
        self.served.append(served)
        replica.busy.append((served.started, now))
        loads = self._loads[served.router]
        loads[replica.name] = max(0.0, loads[replica.name] - 1)
        if replica.queue:
            self._serve(replica, now)
