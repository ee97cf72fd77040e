"""The disk tier, as the scheduler knows it: what it asked the workers to read.

The files lie with the workers (`worker/disk_store.py`). Only they can tell whether a module is
there and valid, so the scheduler asks, and lets who needs the module wait for the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from vllm_promptcache.store.host_tier import HostModule

# Keys of models' own modules; behind it, a LoRA adapter's name, which says nothing of its weights.
KEY_BYTES = 32
MAX_NUM_STAGED = 256
"""Modules that wait in host memory for those who asked for them, who may be gone by now."""


@dataclass(slots=True)
class DiskTier:
    """Modules that are being read from disk, have been read, or are known not to be there.

    Attributes:
        is_on: Whether there is such a tier.
    """

    is_on: bool
    _asked: set[bytes] = field(default_factory=set)
    _staged: dict[bytes, HostModule] = field(default_factory=dict)
    _absent: set[bytes] = field(default_factory=set)

    def may_have(self, key: bytes) -> bool:
        """Whether a missing module should be waited for rather than encoded."""
        return self.is_on and len(key) == KEY_BYTES and key not in self._absent

    def ask(self, key: bytes) -> bool:
        """Takes note that a module is needed; returns whether the workers must be told."""
        if key in self._asked or key in self._staged:
            return False
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
        for key, num_tokens, num_blocks in found:
            if key in self._asked:
                self._staged[key] = HostModule(num_tokens, num_blocks)
            else:
                dropped.append(key)
            self._asked.discard(key)
        self._absent |= self._asked.intersection(absent)
        self._asked.difference_update(absent)
        # Whoever still needs one of the first asks again.
        while len(self._staged) > MAX_NUM_STAGED:
            dropped.append(key := next(iter(self._staged)))
            del self._staged[key]
        return dropped

    def written(self, key: bytes) -> None:
        """Takes note that a module was encoded, so that its file is being written."""
        self._absent.discard(key)

    def clear(self) -> None:
        """Forgets all answers, also those that are still on their way."""
        self._asked.clear()
        self._staged.clear()
        self._absent.clear()
