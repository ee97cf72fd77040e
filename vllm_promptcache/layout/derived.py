"""What is derived of schemas and can be derived again: kept within a number of bytes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, TypeVar, cast

from cachetools import LRUCache

# All schemas of one front end together: as chats have them, as tenants have them, modules that were
# moved, and chains.
MAX_DERIVED_BYTES = 128 * 2**20

T = TypeVar("T")


class DerivedCache:
    """Keeps what was used last; what does not fit any more is derived again when it is used.

    May be used from many threads.

    Args:
        max_bytes: How much is kept.
    """

    def __init__(self, max_bytes: int = MAX_DERIVED_BYTES) -> None:
        self._lock = Lock()
        # By owner and key: value and bytes.
        self._entries: Any = LRUCache(max_bytes, getsizeof=lambda entry: entry[1])

    @property
    def num_bytes(self) -> int:
        """How much is kept now."""
        return int(self._entries.currsize)

    def open(self) -> Derived:
        """Makes room for what is derived of one schema."""
        return Derived(self, _Owner())

    def get(self, owner: _Owner, key: Hashable) -> object | None:
        """What is kept under a key; it counts as used."""
        with self._lock:
            entry = self._entries.get((owner, key))
            return None if entry is None else entry[0]

    def put(self, owner: _Owner, key: Hashable, value: object, num_bytes: int) -> None:
        """Keeps a value, in place of those not used for longest."""
        with self._lock:
            # Prompts in flight go on with a schema that has been removed.
            if owner.is_open and num_bytes <= self._entries.maxsize:
                self._entries[owner, key] = value, num_bytes

    def drop(self, owner: _Owner) -> None:
        """Lets go of all that belongs to an owner, and takes nothing more of it."""
        with self._lock:
            owner.is_open = False
            for key in [key for key in self._entries if key[0] is owner]:
                del self._entries[key]


class _Owner:
    """A compiled schema; it is open while that is served."""

    def __init__(self) -> None:
        self.is_open = True


class Derived:
    """What is derived of one compiled schema, for as long as that is served."""

    def __init__(self, cache: DerivedCache, owner: _Owner) -> None:
        self._cache = cache
        self._owner = owner
        # Tells keys of this part from those of others.
        self._part = object()

    def part(self) -> Derived:
        """Room for what is derived of something derived; it goes with the schema."""
        return Derived(self._cache, self._owner)

    def get(self, key: Hashable, make: Callable[[], T], num_bytes: Callable[[T], int]) -> T:
        """Returns what `make` makes, or has made.

        Args:
            key: What it is, among all that is derived here.
            make: Derives it. Two threads may do so at once.
            num_bytes: Its size, without what it shares with the schema.
        """
        own_key = self._part, key
        found = self._cache.get(self._owner, own_key)
        if found is not None:
            return cast(T, found)
        made = make()
        self._cache.put(self._owner, own_key, made, num_bytes(made))
        return made

    def close(self) -> None:
        """Lets go of everything, since the schema is removed or replaced."""
        self._cache.drop(self._owner)
