"""Policies that choose a replica for a request, see `scale_out`."""

from __future__ import annotations

from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import Protocol

from benchmarks.scale_out_traffic import Request
from vllm_promptcache.ranking import Replicas, Summary
from vllm_promptcache.ranking.rendezvous import digest

# Those of Ray's PrefixCacheAffinityRouter.
IMBALANCED_THRESHOLD = 10
MATCH_RATE_THRESHOLD = 0.1
NUM_RING_POINTS = 100


class Policy(Protocol):
    """What a router asks, one object a router."""

    def choose(
        self, request: Request, names: tuple[str, ...], loads: Sequence[float], now: float
    ) -> int:
        """Chooses a replica.

        Args:
            request: The request.
            names: Names of the replicas that are up.
            loads: Requests at each of them, as far as the router knows.
            now: In seconds.

        Returns:
            Its index in `names`.
        """

    def report(self, name: str, summary: Summary, now: float) -> None:
        """Learns what is resident at a replica."""

    def remove(self, name: str) -> None:
        """Learns that a replica is gone."""


class Uninformed:
    """A policy that learns nothing."""

    def report(self, name: str, summary: Summary, now: float) -> None:
        pass

    def remove(self, name: str) -> None:
        pass


class RandomChoice(Uninformed):
    """Any replica."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def choose(
        self, request: Request, names: tuple[str, ...], loads: Sequence[float], now: float
    ) -> int:
        return self._random.randrange(len(names))


class TwoChoices(Uninformed):
    """The less loaded of two replicas, as Ray Serve chooses by default."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def choose(
        self, request: Request, names: tuple[str, ...], loads: Sequence[float], now: float
    ) -> int:
        two = self._random.sample(range(len(names)), min(2, len(names)))
        return min(two, key=loads.__getitem__)


class ConsistentHash(Uninformed):
    """The next replica to the schema's name on a ring, whatever its load."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._ring: list[tuple[int, int]] = []

    def choose(
        self, request: Request, names: tuple[str, ...], loads: Sequence[float], now: float
    ) -> int:
        if names != self._names:
            self._names = names
            self._ring = sorted(
                (digest(f"{name}/{point}"), index)
                for index, name in enumerate(names)
                for point in range(NUM_RING_POINTS)
            )
        place = bisect(self._ring, (digest(request.schema), 0))
        return self._ring[place % len(self._ring)][1]


class PrefixTree:
    """Which replicas have got prompts that begin with these modules; all routers share one."""

    def __init__(self) -> None:
        self._names: defaultdict[tuple[bytes, ...], set[str]] = defaultdict(set)
        self.num_tokens: Counter[str] = Counter()

    def match(self, request: Request, names: set[str]) -> tuple[int, set[str]]:
        """Tokens of the longest known beginning, and those of `names` that have it."""
        num_matched, found, prefix = 0, set[str](), ()
        for key, num_tokens in request.tokens.items():
            prefix = (*prefix, key)
            if not (having := self._names.get(prefix, set()) & names):
                break
            num_matched, found = num_matched + num_tokens, having
        return num_matched, found

    def insert(self, request: Request, name: str) -> None:
        """Notes that a replica gets a prompt."""
        for prefix in accumulate((key,) for key in request.tokens):
            if name not in self._names[prefix]:
                self._names[prefix].add(name)
                self.num_tokens[name] += request.tokens[prefix[-1]]

    def remove(self, name: str) -> None:
        """Forgets a replica."""
        del self.num_tokens[name]
        for names in self._names.values():
            names.discard(name)


class PrefixAware(Uninformed):
    """By the beginning of the prompt, as Ray's PrefixCacheAffinityRouter does; SGLang's is alike.

    While queues differ by 10 requests at most, a prompt goes where its longest beginning went, or
    if that is less than a tenth of it, where fewest tokens went; else to the less loaded of two.
    """

    def __init__(self, tree: PrefixTree, seed: int) -> None:
        self._tree = tree
        self._two_choices = TwoChoices(seed)

    def choose(
        self, request: Request, names: tuple[str, ...], loads: Sequence[float], now: float
    ) -> int:
        chosen = self._choose(request, names, loads, now)
        self._tree.insert(request, names[chosen])
        return chosen

    def _choose(
        self, request: Request, names: tuple[str, ...], loads: Sequence[float], now: float
    ) -> int:
        if max(loads) - min(loads) > IMBALANCED_THRESHOLD:
            return self._two_choices.choose(request, names, loads, now)
        num_matched, found = self._tree.match(request, set(names))
        if num_matched < MATCH_RATE_THRESHOLD * request.num_tokens:
            fewest = min(self._tree.num_tokens[name] for name in names)
            found = {name for name in names if self._tree.num_tokens[name] == fewest}
        able = [index for index, name in enumerate(names) if name in found]
        return min(able, key=loads.__getitem__)

    def remove(self, name: str) -> None:
        self._tree.remove(name)


class Affinity:
    """The ranking of this project."""

    def __init__(self, margin: float) -> None:
        self._replicas = Replicas(margin)
        self.report = self._replicas.report
        self.remove = self._replicas.remove

    def choose(
        self, request: Request, names: tuple[str, ...], loads: Sequence[float], now: float
    ) -> int:
        chosen = next(self._replicas.rank(request.schema, request.tokens, names, loads))
        self._replicas.expect(names[chosen], request.tokens, now)
        return chosen
