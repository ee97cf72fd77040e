"""What a router knows of the replicas, and how it ranks them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.ranking.holders import Holders
from vllm_promptcache.ranking.order import are_free, by_tokens, by_weight
from vllm_promptcache.ranking.rendezvous import digest, weights
from vllm_promptcache.ranking.summary import Summary, short_key

# A summary may be of a time before a request has come to its turn and its modules were encoded.
EXPECTED_S = 10.0
# Requests at a replica whose modules are expected there whatever its summary says, the last ones.
MAX_NUM_EXPECTED = 128


@dataclass(slots=True)
class _Replica:
    """A replica and its bit in the masks of holders.

    Attributes:
        slot: The number of its bit.
        summary: What it has said last.
        expected: Short keys of the modules of each request that was sent to it, with its time.
    """

    slot: int
    summary: Summary = field(default_factory=Summary)
    expected: deque[tuple[float, tuple[int, ...]]] = field(
        default_factory=lambda: deque(maxlen=MAX_NUM_EXPECTED)
    )


class Replicas:
    """The replicas of a model, as one router knows them.

    A replica is known from the first time that it is ranked, expected or reported. Nothing here
    looks at a clock: times are given, in seconds. What it takes is bounded: see the constants here,
    in `holders` and in `summary`.

    Args:
        margin: Requests by which a replica may be busier than another and still be preferred.
    """

    def __init__(self, margin: float) -> None:
        self._margin = margin
        self._replicas: dict[str, _Replica] = {}
        self._free_slots: list[int] = []
        # Those of the last names that were ranked, mostly the same ones again.
        self._last: tuple[tuple[str, ...], NDArray[np.intp]] = ((), np.zeros(0, np.intp))
        # By slot.
        self._digests = np.zeros(8, np.uint64)
        self._resident = np.zeros(8, np.int64)
        self._holders = Holders()

    def rank(
        self,
        schema: str,
        tokens: Mapping[bytes, int],
        names: tuple[str, ...],
        loads: Sequence[float],
    ) -> Iterator[int]:
        """Ranks replicas for a request, see `order`; what is not asked for is not computed.

        Args:
            schema: Name of the schema of the modules.
            tokens: Tokens that the request reads of each module, by key.
            names: The replicas that may be chosen.
            loads: Requests at each of them.

        Yields:
            Indexes of `names`, best first.
        """
        if not names:
            return
        slots, known_loads = self._slots(names), np.asarray(loads, np.float64)
        held = self._holders.num_held(tokens, len(self._digests))[slots]
        is_free, is_holder = are_free(known_loads, self._margin), held > 0
        yield from by_tokens(np.flatnonzero(is_free & is_holder), held, known_loads).tolist()
        others = np.flatnonzero(is_free & ~is_holder)
        weighed = weights(digest(schema), self._digests[slots])
        yield from by_weight(others, weighed, self._resident[slots]).tolist()
        busy = np.flatnonzero(~is_free)
        yield from busy[np.argsort(known_loads[busy], kind="stable")].tolist()

    def expect(self, name: str, keys: Iterable[bytes], now: float) -> None:
        """Notes that a request which reads these modules is on its way to a replica."""
        replica = self._replica(name)
        short_keys = tuple(map(short_key, keys))
        replica.expected.append((now, short_keys))
        self._holders.add(replica.slot, short_keys)

    def report(self, name: str, summary: Summary, now: float) -> None:
        """Takes what a replica says of itself in place of what was known.

        What has been expected there for less than 10 s stays. Only for replicas that are up: one
        that was removed would be known again.
        """
        replica = self._replica(name)
        gone = set(self._unmet(replica, summary, now))
        if summary.packed_keys != replica.summary.packed_keys:
            old, new = replica.summary.short_keys, summary.short_keys
            self._holders.add(replica.slot, np.setdiff1d(new, old, assume_unique=True).tolist())
            gone.update(np.setdiff1d(old, new, assume_unique=True).tolist())
        expected = (keys for _, keys in replica.expected)
        self._holders.discard(replica.slot, gone.difference(*expected))
        replica.summary = summary
        self._resident[replica.slot] = summary.num_tokens

    def remove(self, name: str) -> None:
        """Forgets a replica that is gone; no error if it is not known."""
        replica = self._replicas.pop(name, None)
        if replica is None:
            return
        self._last = (), np.zeros(0, np.intp)
        self._holders.clear(replica.slot)
        self._resident[replica.slot] = 0
        self._free_slots.append(replica.slot)

    def _slots(self, names: tuple[str, ...]) -> NDArray[np.intp]:
        if names != self._last[0]:
            slots = [self._replica(name).slot for name in names]
            self._last = names, np.array(slots, np.intp)
        return self._last[1]

    def _replica(self, name: str) -> _Replica:
        found = self._replicas.get(name)
        return self._join(name) if found is None else found

    def _join(self, name: str) -> _Replica:
        slot = self._free_slots.pop() if self._free_slots else len(self._replicas)
        if slot == len(self._digests):
            self._digests = np.concatenate((self._digests, np.zeros_like(self._digests)))
            self._resident = np.concatenate((self._resident, np.zeros_like(self._resident)))
        self._digests[slot] = digest(name)
        self._replicas[name] = replica = _Replica(slot)
        return replica

    @staticmethod
    def _unmet(replica: _Replica, summary: Summary, now: float) -> list[int]:
        """Forgets what was expected long ago; returns that of it which is not reported."""
        expected = replica.expected
        late: list[int] = []
        while expected and expected[0][0] < now - EXPECTED_S:
            late += expected.popleft()[1]
        return np.setdiff1d(np.array(late, np.uint64), summary.short_keys).tolist() if late else []
