"""The disk tier, as the scheduler knows it: what it asked the workers to read.

The files lie with the workers (`worker/disk_store.py`). Only they can tell whether a module is
there and valid, so the scheduler asks, and lets who needs the module wait for the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from vllm_promptcache.store.bounded import forget_oldest
from vllm_promptcache.store.host_tier import HostModule

# Keys of models' own modules; behind it, a LoRA adapter's name, which says nothing of its weights.
KEY_BYTES = 32
MAX_NUM_STAGED = 256
"""Modules that wait in host memory for those who asked for them, who may be gone by now."""

MAX_NUM_ASKED = 16
"""Modules that are being read; each is in memory then, and how large it is nobody knows before."""

MAX_NUM_ABSENT = 65_536
"""Modules that are known not to be on disk; of those, most are being encoded."""

PATIENCE_S = 30.0
"""Without an answer for so long, modules are encoded: a network file system may hang."""


@dataclass(slots=True)
class DiskTier:
    """Modules that are being read from disk, have been read, or are known not to be there.

    Attributes:
        is_on: Whether there is such a tier.
        max_staged_blocks: Blocks that the modules which were read may take in host memory.
        clock: Seconds; never goes back.
    """

    is_on: bool
    max_staged_blocks: int
    clock: Callable[[], float] = time.monotonic
    _asked: set[bytes] = field(default_factory=set)
    _staged: dict[bytes, HostModule] = field(default_factory=dict)
    # An ordered set: the oldest first.
    _absent: dict[bytes, None] = field(default_factory=dict)
    # When an answer came last, or the first one has been waited for.
    _last_answer: float = 0.0

    def may_have(self, key: bytes) -> bool:
        """Whether a missing module should be waited for rather than encoded."""
        if not self.is_on or len(key) != KEY_BYTES or key in self._absent:
            return False
        return key in self._staged or not self._is_stuck()

    def _is_stuck(self) -> bool:
        return bool(self._asked) and self.clock() - self._last_answer > PATIENCE_S

    def ask(self, key: bytes) -> bool:
        """Takes note that a module is needed; returns whether the workers must be told.

        Not if they have enough to read: who needs it asks again.
        """
        is_known = key in self._asked or key in self._staged
        if is_known or len(self._asked) >= MAX_NUM_ASKED:
            return False
        if not self._asked:
            self._last_answer = self.clock()
        self._asked.add(key)
        return True

    def staged(self, key: bytes) -> HostModule | None:
        """A module that was read and waits in host memory, None if it is not there."""
        return self._staged.get(key)

    def forget(self, key: bytes) -> None:
        """Takes note that a module is elsewhere, so that it need not be read or staged any more."""
        self._asked.discard(key)
        self._staged.pop(key, None)

    def take_staged(self, keep: Collection[bytes]) -> list[bytes]:
        """Forgets the staged modules that are not in `keep`; returns their keys."""
        keys = [key for key in self._staged if key not in keep]
        for key in keys:
            del self._staged[key]
        return keys

    def answered(
        self, found: Iterable[tuple[bytes, int, int]], absent: Iterable[bytes]
    ) -> list[bytes]:
        """Takes note of the workers' answers.

        Args:
            found: Key, tokens and blocks of modules that are in host memory now.
            absent: Keys of modules that are not there, or not valid.

        Returns:
            Keys of modules to be dropped: nobody asks for them any more, or too many are staged.
        """
        dropped = []
        self._last_answer = self.clock()
        for key, num_tokens, num_blocks in found:
            if key in self._asked:
                self._staged[key] = HostModule(num_tokens, num_blocks)
            else:
                dropped.append(key)
            self._asked.discard(key)
        self._absent.update(dict.fromkeys(self._asked.intersection(absent)))
        self._asked.difference_update(absent)
        forget_oldest(self._absent, MAX_NUM_ABSENT)
        return dropped + self._drop_staged()

    def _drop_staged(self) -> list[bytes]:
        """Forgets the modules that were read first if all are too many; returns their keys.

        Whoever still needs one of them asks again. The last one stays, however large it is.
        """
        dropped = []
        num_blocks = sum(module.num_blocks for module in self._staged.values())
        while len(self._staged) > 1 and (
            len(self._staged) > MAX_NUM_STAGED or num_blocks > self.max_staged_blocks
        ):
            dropped.append(key := next(iter(self._staged)))
            num_blocks -= self._staged.pop(key).num_blocks
        return dropped

    def written(self, key: bytes) -> None:
        """Takes note that a module was encoded, so that its file is being written."""
        self._absent.pop(key, None)

    def clear(self) -> None:
        """Forgets all answers, also those that are still on their way."""
        self._asked.clear()
        self._staged.clear()
        self._absent.clear()
