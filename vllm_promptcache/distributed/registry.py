"""The schemas of an app: a folder that one actor keeps, and of which every replica has a copy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vllm_promptcache.distributed.file_tree import FileTree, digest_of
from vllm_promptcache.log import module_logger

PATIENCE_S = 10.0
"""A copy that was not heard of for so long is of a replica that has died."""

_POLL_S = 2.0
_SECONDS_BETWEEN_LOOKS = 0.5

logger = module_logger(__name__)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a copy has to take over.

    Attributes:
        version: Later changes have a higher one.
        digests: Of all files, by their paths inside the folder.
        contents: Of those that the copy does not have.
    """

    version: int
    digests: dict[str, str]
    contents: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of the folder, as it was when it was heard of last.

    Attributes:
        digests: Of its files.
        heard: When, in seconds.
    """

    digests: dict[str, str]
    heard: float


@dataclass(slots=True)
class SchemaRegistry:
    """Owns the folder: writes one change at a time, and tells all copies.

    What others do to the folder is noticed as well. Nothing but the folder need outlive it: copies
    say what they have.

    Attributes:
        tree: The folder.
        patience_s: See `PATIENCE_S`.
    """

    tree: FileTree
    patience_s: float = PATIENCE_S
    _digests: dict[str, str] = field(default_factory=dict)
    # Higher than those before a restart.
    _version: int = field(default_factory=time.time_ns)
    _copies: dict[str, Copy] = field(default_factory=dict)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def look(self) -> None:
        """Notices what others have done to the folder."""
        async with self._changed:
            await self._look()

    async def watch(self) -> None:
        """Does so again and again; does not end."""
        while True:
            await self.look()
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)

    async def changes(self, copy: str, digests: Mapping[str, str]) -> Changes | None:
        """Waits a few seconds until the folder is another than a copy of it.

        Args:
            copy: Names the copy.
            digests: Of its files.

        Returns:
            The changes; None if there were none.
        """
        async with self._changed:
            self._copies[copy] = Copy(dict(digests), time.monotonic())
            self._changed.notify_all()
            if self._digests == digests:
                await self._wait(_POLL_S, lambda: self._digests != digests)
            if self._digests == digests:
                return None
            return await asyncio.to_thread(self._changes, digests)

    def _changes(self, digests: Mapping[str, str]) -> Changes:
        changed = [n for n, digest in self._digests.items() if digests.get(n) != digest]
        contents = {name: self.tree.read(name) for name in changed}
        read = {name: content for name, content in contents.items() if content is not None}
        return Changes(self._version, dict(self._digests), read)

    async def put(
        self, copy: str, name: str, content: bytes | None, expected: str | None
    ) -> int | None:
        """Writes or removes a file, and waits until all other copies have taken that over.

        Args:
            copy: Whose file it is.
            name: Its path inside the folder.
            content: What is in it; None to remove it.
            expected: The digest of what the writer knows to be replaced; None for nothing.

        Returns:
            The version of the folder then; None if there is something else than expected, which
            stays.

        Raises:
            OSError: The folder cannot be written.
        """
        async with self._changed:
            await self._look()
            digest = None if content is None else digest_of(content)
            # Who asks again, since the registry died meanwhile, finds it done.
            if self._digests.get(name) not in (expected, digest):
                return None
            if content is None:
                self.tree.remove(name)
            else:
                self.tree.write(name, content)
            await self._look()
            written, version = self._digests.get(name), self._version
            others = [other for other in self._copies if other != copy]
            await self._wait(
                self.patience_s, lambda: all(self._has(other, name, written) for other in others)
            )
            self._forget_silent()
        return version

    def _has(self, copy: str, name: str, written: str | None) -> bool:
        """Whether a copy has what was written, or something newer, or is none any more."""
        known = self._copies.get(copy)
        if known is None or time.monotonic() - known.heard > self.patience_s:
            return True
        return known.digests.get(name) in (written, self._digests.get(name))

    def _forget_silent(self) -> None:
        now = time.monotonic()
        silent = [n for n, copy in self._copies.items() if now - copy.heard > self.patience_s]
        for name in silent:
            logger.warning("Replica %s has not asked for schemas for a while: forgotten.", name)
            del self._copies[name]

    async def _look(self) -> None:
        digests = await asyncio.to_thread(self.tree.digests)
        if digests != self._digests:
            self._digests = digests
            self._version += 1
            self._changed.notify_all()

    async def _wait(self, seconds: float, is_true: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait_for(is_true)
        except TimeoutError:
            pass
