"""The disk tier, as the scheduler knows it: what it asked the workers to read.

The files lie with the workers (`worker/disk_store.py`), each of which has its own shard of a
module. Only they can tell whether it is there and valid, so the scheduler asks, and lets who needs
the module wait until all of them have answered.
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


@dataclass(frozen=True, slots=True)
class ReadModule:
    """What a worker has read of a module, and holds in host memory now.

    Attributes:
        key: The module's key.
        num_tokens: Its kept tokens.
        num_blocks: Blocks it takes.
        encode_id: Of the encode that it is of, see `StepMetadata`.
    """

    key: bytes
    num_tokens: int
    num_blocks: int
    encode_id: bytes


@dataclass(slots=True)
class _Fetch:
    """A module that the workers were told to read.

    Attributes:
        is_wanted: Whether it is to be staged when all have read it.
        answers: What each worker has read that has answered; None if that is nothing.
    """

    is_wanted: bool = True
    answers: list[ReadModule | None] = field(default_factory=list)

    @property
    def module(self) -> ReadModule | None:
        """The module, if all that have answered have read it, of the same encode.

        Shards of different ones need not fit: a worker knows its own weights, but its KV depends on
        those of all.
        """
        first, *others = self.answers
        return first if all(answer == first for answer in others) else None


@dataclass(slots=True)
class DiskTier:
    """Modules that are being read from disk, have been read, or are known not to be there.

    A module that was asked for is not asked for again before all workers have answered: until then
    some of them may yet put it into host memory, or have to drop it from there.

    Attributes:
        is_on: Whether there is such a tier.
        max_staged_blocks: Blocks that the modules which were read may take in host memory.
        num_workers: Workers that answer, each of them once.
        clock: Seconds; never goes back.
    """

    is_on: bool
    max_staged_blocks: int
    num_workers: int = 1
    clock: Callable[[], float] = time.monotonic
    _asked: dict[bytes, _Fetch] = field(default_factory=dict)
    _staged: dict[bytes, HostModule] = field(default_factory=dict)
    # An ordered set: the oldest first.
    _absent: dict[bytes, None] = field(default_factory=dict)
    # When all have answered last, or the first answer has been waited for.
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
        self._asked[key] = _Fetch()
        return True

    def staged(self, key: bytes) -> HostModule | None:
        """A module that was read and waits in host memory, None if it is not there."""
        return self._staged.get(key)

    def forget(self, key: bytes) -> None:
        """Takes note that a module is elsewhere, so that it need not be staged any more."""
        if (fetch := self._asked.get(key)) is not None:
            fetch.is_wanted = False
        self._staged.pop(key, None)

    def take_staged(self, keep: Collection[bytes]) -> list[bytes]:
        """Forgets the staged modules that are not in `keep`; returns their keys."""
        keys = [key for key in self._staged if key not in keep]
        for key in keys:
            del self._staged[key]
        return keys

    def answered(
        self, found: Iterable[ReadModule], absent: Iterable[bytes]
    ) -> tuple[list[bytes], list[bytes]]:
        """Takes note of workers' answers.

        Args:
            found: What workers have in host memory now, a module once for each of them.
            absent: Keys of modules that are not there, or not valid, once for each worker.

        Returns:
            Keys of modules that all workers have read now. And those to be dropped: nobody asks for
            them any more, not all workers have them, or too many are staged.
        """
        answers: list[tuple[bytes, ReadModule | None]] = [(module.key, module) for module in found]
        answers += [(key, None) for key in absent]
        read, dropped = [], []
        for key, answer in answers:
            if (fetch := self._asked.get(key)) is None:
                continue
            fetch.answers.append(answer)
            if len(fetch.answers) < self.num_workers:
                continue
            if self._end(key, fetch):
                read.append(key)
            elif any(fetch.answers):
                dropped.append(key)
        return read, dropped + self._drop_staged()

    def _end(self, key: bytes, fetch: _Fetch) -> bool:
        """Takes note that all workers have answered; returns whether the module is staged."""
        self._last_answer = self.clock()
        del self._asked[key]
        module = fetch.module
        if not fetch.is_wanted:
            return False
        if module is None:
            self._absent[key] = None
            forget_oldest(self._absent, MAX_NUM_ABSENT)
            return False
        self._staged[key] = HostModule(module.num_tokens, module.num_blocks)
        return True

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
