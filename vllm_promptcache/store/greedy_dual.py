"""GreedyDual-Size-Frequency (Cherkasova 1998): which modules are worth their room."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

# Stale entries of the heap are swept when there are more of them than of others, and then some.
_MIN_SWEEP = 64


@dataclass(slots=True)
class GreedyDual:
    """Ranks modules by what they save for the room they take.

    A module's priority is its number of uses times its value, plus the priority that the last one
    had which left: so what is not used ages, however often it was used before.
    """

    _num_uses: dict[bytes, int] = field(default_factory=dict)
    _priorities: dict[bytes, float] = field(default_factory=dict)
    _heap: list[tuple[float, bytes]] = field(default_factory=list)
    _age: float = 0.0

    def use(self, key: bytes, value: float) -> None:
        """Counts a use; the first one adds the module.

        Args:
            key: The module.
            value: What a use saves for each block of room, such as tokens that need no encode.
        """
        num_uses = self._num_uses[key] = self._num_uses.get(key, 0) + 1
        priority = self._priorities[key] = self._age + num_uses * value
        heapq.heappush(self._heap, (priority, key))
        if len(self._heap) > 2 * len(self._priorities) + _MIN_SWEEP:
            self._heap = [(priority, key) for key, priority in self._priorities.items()]
            heapq.heapify(self._heap)

    def pop_least(self, may_leave: Callable[[bytes], bool] = lambda key: True) -> bytes | None:
        """Forgets and returns the module of least priority that may leave; None if none may."""
        staying, found = [], None
        while self._heap and found is None:
            priority, key = heapq.heappop(self._heap)
            if self._priorities.get(key) != priority:
                continue
            if may_leave(key):
                found, self._age = key, priority
            else:
                staying.append((priority, key))
        for entry in staying:
            heapq.heappush(self._heap, entry)
        if found is not None:
            self.forget(found)
        return found

    def forget(self, key: bytes) -> None:
        """Forgets a module that is gone for another reason."""
        self._num_uses.pop(key, None)
        self._priorities.pop(key, None)

    def __len__(self) -> int:
        return len(self._priorities)

    def keep_only(self, keys: Collection[bytes]) -> None:
        """Forgets all modules but these."""
        for key in self._priorities.keys() - keys:
            self.forget(key)

    def clear(self) -> None:
        """Forgets all modules."""
        self._num_uses.clear()
        self._priorities.clear()
        self._heap.clear()
