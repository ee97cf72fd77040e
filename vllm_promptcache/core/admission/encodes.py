"""Encodes under way: one for each missing module, shared by all requests that wait for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from vllm.v1.request import Request

from vllm_promptcache.core.request import EncodeRequest, ModularRequest, internal_request
from vllm_promptcache.sequence.block_table import BlockTable
from vllm_promptcache.sequence.spec import ModuleSpec

# Worse than that of any user's request.
LAST_PRIORITY = 1 << 31


@dataclass(slots=True)
class Encodes:
    """Owns the encode requests from their start to their end, by the key of their module.

    Attributes:
        block_size: Tokens a block.
        num_started: Encodes so far.
        for_nobody: The encode that was started for nobody; somebody may wait for it since.
    """

    block_size: int
    num_started: int = 0
    for_nobody: EncodeRequest | None = None
    _by_key: dict[bytes, EncodeRequest] = field(default_factory=dict)
    _orphans: dict[str, EncodeRequest] = field(default_factory=dict)
    _outranked: dict[str, tuple[Request, tuple[int, float]]] = field(default_factory=dict)
    _counter: Iterator[int] = field(default_factory=itertools.count)

    def __contains__(self, key: bytes) -> bool:
        return key in self._by_key

    def get(self, key: bytes) -> EncodeRequest | None:
        """The encode of a module, None if there is none."""
        return self._by_key.get(key)

    def join(self, key: bytes, waiter: ModularRequest) -> bool:
        """Adds a waiter to the encode of `key`; returns whether there is one."""
        encode = self._by_key.get(key)
        if encode is None:
            return False
        encode.waiters.add(waiter.request_id)
        rank = waiter.request.priority, waiter.request.arrival_time
        if rank < (encode.request.priority, encode.request.arrival_time):
            self._outranked[encode.request_id] = encode.request, rank
        return True

    def take_outranked(self) -> list[tuple[Request, tuple[int, float]]]:
        """Returns encodes that a request waits for which comes before them, with its rank.

        A rank is priority and time of arrival. The encodes keep theirs: a queue is sorted by it.
        """
        outranked = list(self._outranked.values())
        self._outranked.clear()
        return outranked

    def start(self, waiter: ModularRequest, key: bytes) -> EncodeRequest:
        """Makes the request that encodes module `key` of the waiter's plan.

        Raises:
            PlanError: The plan's packed module is malformed.
        """
        spec = waiter.prompt.spec(key)
        encode = EncodeRequest(
            self._make_request(waiter.request, spec),
            waiter.prompt,
            BlockTable.of(spec.sequence, self.block_size),
            spec=spec,
            key=waiter.store_key(key),
            waiters={waiter.request_id},
        )
        self._by_key[encode.key] = encode
        self.num_started += 1
        return encode

    def start_for_nobody(self, source: ModularRequest, key: bytes) -> EncodeRequest:
        """As `start` for a module of the plan of `source`, which does not wait for it."""
        self.for_nobody = encode = self.start(source, key)
        encode.waiters.clear()
        encode.request.priority = LAST_PRIORITY
        return encode

    def leave(self, waiter: ModularRequest) -> None:
        """The waiter needs its modules no more (it was admitted or has ended)."""
        for key in waiter.store_keys():
            if (encode := self._by_key.get(key)) is not None:
                encode.waiters.discard(waiter.request_id)
                if not encode.waiters:
                    self._orphans[encode.request_id] = encode

    def finish(self, encode: EncodeRequest) -> None:
        """Forgets an encode that has ended, in whatever way."""
        self._by_key.pop(encode.key, None)
        self._orphans.pop(encode.request_id, None)
        self._outranked.pop(encode.request_id, None)
        if encode is self.for_nobody:
            self.for_nobody = None

    def take_orphans(self) -> list[str]:
        """Returns the ids of encodes that nobody waits for any more, to be aborted."""
        orphans = [request_id for request_id, e in self._orphans.items() if not e.waiters]
        self._orphans.clear()
        return orphans

    def _make_request(self, waiter: Request, spec: ModuleSpec) -> Request:
        # Context tokens are never computed here, so their ids do not matter.
        token_ids = [0] * spec.sequence.num_cached_tokens + list(spec.token_ids)
        request_id = f"prompt-module-{next(self._counter)}-{spec.key.hex()[:12]}"
        return internal_request(request_id, token_ids, waiter)
