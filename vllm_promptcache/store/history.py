"""What became of each module so far, also while it is not resident."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field

MAX_NUM_MODULES = 65_536
"""Modules that are remembered; those not used longest are forgotten."""


@dataclass(slots=True)
class ModuleHistory:
    """Counts of one module.

    Attributes:
        num_hits: Requests that found it resident.
        num_encodes: How often it was encoded.
        num_restores: How often it came back from host memory or disk.
        last_use: When one of these was last, in seconds of the monotonic clock.
    """

    num_hits: int = 0
    num_encodes: int = 0
    num_restores: int = 0
    last_use: float = 0.0


@dataclass(slots=True)
class Histories:
    """The histories of all modules by key."""

    _by_key: OrderedDict[bytes, ModuleHistory] = field(default_factory=OrderedDict)

    def get(self, key: bytes) -> ModuleHistory | None:
        """The history of a module, None if it has none."""
        return self._by_key.get(key)

    def used(self, key: bytes) -> ModuleHistory:
        """The history of a module that is being used, for the caller to count in."""
        history = self._by_key.setdefault(key, ModuleHistory())
        self._by_key.move_to_end(key)
        history.last_use = time.monotonic()
        if len(self._by_key) > MAX_NUM_MODULES:
            self._by_key.popitem(last=False)
        return history
