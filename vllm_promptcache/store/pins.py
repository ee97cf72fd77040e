"""Pins: modules that stay in the KV cache because their schema asks for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from vllm_promptcache.errors import ConflictError
from vllm_promptcache.store.module_store import ModuleStore

PIN_OWNER = "pins"
"""Who holds pinned modules in the store; no request has such an id."""


@dataclass(frozen=True, slots=True)
class PinnedModule:
    """A module that is to stay.

    Attributes:
        key: Its key in the store.
        num_blocks: Blocks it takes.
        ttl_s: Seconds from now on, None for no end.
    """

    key: bytes
    num_blocks: int
    ttl_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Wish:
    num_blocks: int
    expires: float


class Pins:
    """What is to stay resident, for each schema, and what of it is held now.

    A wish for a module that is not resident is fulfilled when an encode commits it. A pin never
    starves a request: `give_way` lets go of blocks, and the wish is fulfilled again when the module
    is next used.

    Args:
        store: Holds the modules.
        max_num_blocks: Blocks that pinned modules may take together.
        clock: Seconds; never goes back.
    """

    def __init__(
        self,
        store: ModuleStore,
        max_num_blocks: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._max_num_blocks = max_num_blocks
        self._clock = clock
        self._by_schema: dict[str, dict[bytes, _Wish]] = {}
        # The same by module: of several wishes, the one that lasts longest.
        self._wishes: dict[bytes, _Wish] = {}
        self._next_expiry = math.inf

    def __contains__(self, key: bytes) -> bool:
        return key in self._wishes

    def __bool__(self) -> bool:
        return bool(self._wishes)

    @property
    def num_blocks(self) -> int:
        """Blocks that all pinned modules take if they are resident."""
        return sum(wish.num_blocks for wish in self._wishes.values())

    def replace(self, schema: str, modules: Sequence[PinnedModule]) -> None:
        """Pins these modules of a schema, and no other of it. Nothing changes if it raises.

        Raises:
            ConflictError: All pinned modules together would take too much of the KV cache.
        """
        now = self._clock()
        wishes = {
            m.key: _Wish(m.num_blocks, math.inf if m.ttl_s is None else now + m.ttl_s)
            for m in modules
        }
        by_schema = {**self._by_schema, schema: wishes}
        merged = _merge(by_schema)
        num_blocks = sum(wish.num_blocks for wish in merged.values())
        if wishes and num_blocks > self._max_num_blocks:
            raise ConflictError(
                f"pinned modules would take {num_blocks} KV cache blocks, of which "
                f"{self._max_num_blocks} may be pinned",
                "pin fewer modules, or start with a larger KV cache or a larger share for pins",
            )
        self._by_schema = by_schema
        self._apply(merged)

    def fulfil(self, key: bytes) -> None:
        """Holds a resident module if it is to stay."""
        if key in self._wishes:
            self._store.pin(PIN_OWNER, key)

    def expire(self) -> None:
        """Lets go of modules whose time is over; costs nothing where there are none."""
        now = self._clock()
        if now < self._next_expiry:
            return
        self._by_schema = {
            schema: {key: wish for key, wish in wishes.items() if wish.expires > now}
            for schema, wishes in self._by_schema.items()
        }
        self._apply(_merge(self._by_schema))

    def give_way(self, needed: Collection[bytes]) -> None:
        """Lets go of all held modules but those that the starving request itself needs."""
        for key in self._wishes.keys() - set(needed):
            self._store.unpin(PIN_OWNER, key)

    def _apply(self, wishes: Mapping[bytes, _Wish]) -> None:
        for key in self._wishes.keys() - wishes.keys():
            self._store.unpin(PIN_OWNER, key)
        self._by_schema = {schema: wanted for schema, wanted in self._by_schema.items() if wanted}
        self._wishes = dict(wishes)
        self._next_expiry = min((wish.expires for wish in wishes.values()), default=math.inf)
        for key in wishes:
            self.fulfil(key)


def _merge(by_schema: Mapping[str, Mapping[bytes, _Wish]]) -> dict[bytes, _Wish]:
    merged: dict[bytes, _Wish] = {}
    for wishes in by_schema.values():
        for key, wish in wishes.items():
            known = merged.get(key)
            if known is None or known.expires < wish.expires:
                merged[key] = wish
    return merged
