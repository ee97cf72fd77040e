"""A waiting request with all that it waits for, as far as there is room."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile

from vllm_promptcache.core.admission.demand import BlockDemand, is_running
from vllm_promptcache.core.request import InternalRequest, ModularRequest
from vllm_promptcache.sequence.room import WayOf, at_once, in_best_order, peak
from vllm_promptcache.sequence.spans import ModuleSpan


@dataclass(frozen=True, slots=True)
class Near:
    """A waiting request that may have its modules now.

    Attributes:
        modular: The request: a user's, or one of our own that it waits for.
        spans: What it reads, in the order in which it is to become resident.
        is_serial: Whether there is only room to make one module resident after the other. Then it
            holds no more than those before the first that is missing.
    """

    modular: ModularRequest
    spans: Sequence[ModuleSpan]
    is_serial: bool


@dataclass(frozen=True, slots=True)
class Unit:
    """A request with the encodes, and the probe, that it waits for.

    Attributes:
        num_blocks: Free blocks that all of it takes at most at one time.
        members: Those that wait, the request first.
        keys: Keys in the store of the modules that these blocks are for.
    """

    num_blocks: int
    members: Sequence[Near] = ()
    keys: Collection[bytes] = ()


@dataclass(frozen=True, slots=True)
class Units:
    """Says what a request may have at once, and how many blocks that takes; mutates nothing.

    Attributes:
        demand: Counts the blocks of modules.
        probe_of: Returns the probe that a request waits for.
    """

    demand: BlockDemand
    probe_of: Callable[[ModularRequest], InternalRequest | None]

    def held(self, modular: ModularRequest) -> Unit:
        """The unit of a request that has pinned all of its modules."""
        members = list(self._members(modular, modular.sequence.spans, is_serial=False))
        probe = self.probe_of(modular)
        is_probed = probe is not None and is_running(probe)
        return Unit(0 if is_probed else modular.num_own_blocks, members)

    def fit(
        self, modular: ModularRequest, room: int, others: Collection[bytes], *, is_first: bool
    ) -> Unit | None:
        """The unit of a request that lacks modules, None if there is no room for it.

        Args:
            modular: The request.
            room: Free blocks that it may take.
            others: Keys in the store of modules that are counted for others.
            is_first: Whether it is the first in the queue: it may let go of modules that it holds
                to get others.

        Raises:
            PlanError: A packed module of its plan is malformed.
        """
        way = cache(lambda key: self.demand.now(modular, key, others))
        own, spans = modular.num_own_blocks, modular.sequence.spans
        counted: set[bytes] = set()
        if (num_blocks := at_once(spans, own, way, counted)) <= room:
            return self._unit(modular, num_blocks, _those_here_first(spans, way), counted)
        ordered = self._in_best_order(modular)
        # Those that are here stay, if that leaves room for the others.
        kept_first = _those_here_first(ordered, way)
        num_blocks = peak(kept_first, own, way)
        if num_blocks <= room or self._is_making_progress(modular):
            return self._unit(modular, num_blocks, kept_first)
        if is_first and self._peak_in_order(modular, ordered, way) <= room:
            return self._unit(modular, room, ordered)
        return None

    def _in_best_order(self, modular: ModularRequest) -> list[ModuleSpan]:
        return in_best_order(modular.sequence.spans, lambda key: self.demand.encoded(modular, key))

    def _peak_in_order(
        self, modular: ModularRequest, ordered: Sequence[ModuleSpan], way: WayOf
    ) -> int:
        """The peak if nothing stays but the modules before the first that is missing."""
        kept = takewhile(lambda span: way(span.key).encode is None, ordered)
        keys = {span.key for span in kept}
        return peak(
            ordered,
            modular.num_own_blocks,
            lambda key: way(key) if key in keys else self.demand.encoded(modular, key),
        )

    def _is_making_progress(self, modular: ModularRequest) -> bool:
        """Whether something that it waits for is running, for which there was room."""
        spans = modular.sequence.spans
        running = (self.demand.encode_for(modular, span.key) for span in spans)
        probe = self.probe_of(modular)
        return any(e is not None and is_running(e) for e in (*running, probe))

    def _unit(
        self,
        modular: ModularRequest,
        num_blocks: int,
        spans: Sequence[ModuleSpan],
        counted: Collection[bytes] | None = None,
    ) -> Unit:
        """With what is counted if that is all it needs at once, else one module at a time."""
        is_serial = counted is None
        keys = {span.key for span in spans} if counted is None else counted
        members = list(self._members(modular, spans, is_serial=is_serial))
        return Unit(num_blocks, members, {modular.store_key(key) for key in keys})

    def _members(
        self, modular: ModularRequest, spans: Sequence[ModuleSpan], *, is_serial: bool
    ) -> Iterator[Near]:
        yield Near(modular, spans, is_serial)
        probe = self.probe_of(modular)
        if probe is not None and not is_running(probe):
            yield Near(probe, (), is_serial=False)
        for span in spans:
            if self.demand.store.lookup(modular.store_key(span.key)) is not None:
                continue
            encode = self.demand.encode_for(modular, span.key)
            if encode is not None and not is_running(encode):
                yield from self._members(encode, encode.sequence.spans, is_serial=is_serial)
            if is_serial:
                break


def _those_here_first(spans: Iterable[ModuleSpan], way_of: WayOf) -> list[ModuleSpan]:
    return sorted(spans, key=lambda span: way_of(span.key).encode is not None)
