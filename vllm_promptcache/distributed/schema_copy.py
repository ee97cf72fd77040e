"""A replica's copy of the registry's folder, which its server has as its schema folder."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from vllm_promptcache.distributed.file_tree import FileTree
from vllm_promptcache.distributed.registry import Changes
from vllm_promptcache.log import module_logger

_SECONDS_BETWEEN_TRIES = 1.0
# The digest of no file: what is here gives way to what the registry has.
_LOST = ""

logger = module_logger(__name__)


@dataclass(slots=True)
class SchemaCopy:
    """Keeps a folder as the registry's is, and tells the registry what is written here.

    While the registry cannot be reached the copy stays as it was: nobody can write then.

    Attributes:
        name: Tells this copy from the others.
        tree: The folder.
        changes: `SchemaRegistry.changes`, of a registry that is elsewhere.
        put: Its `SchemaRegistry.put`.
    """

    name: str
    tree: FileTree
    changes: Callable[[str, dict[str, str]], Awaitable[Changes | None]]
    put: Callable[[str, str, bytes | None, str | None], Awaitable[int | None]]
    # As the registry had them when it was heard of last; what differs was written here.
    _digests: dict[str, str] = field(default_factory=dict)
    _version: int = 0
    # Held while the folder is looked at; not while the registry waits for other copies, which may
    # be writing as well.
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _publishing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def pull(self) -> None:
        """Takes over what the registry has."""
        if (changes := await self.changes(self.name, self._digests)) is not None:
            async with self._looking:
                await asyncio.to_thread(self._take, changes)

    async def follow(self) -> None:
        """Takes over what changes; does not end."""
        while True:
            try:
                await self.pull()
            # Whatever it is: the registry is started again when it dies.
            except Exception as error:
                logger.warning("The schema registry cannot be reached: %s", type(error).__name__)
                await asyncio.sleep(_SECONDS_BETWEEN_TRIES)

    async def publish(self) -> bool:
        """Gives the registry what was written here.

        Returns:
            Whether it took everything. What it did not take was written elsewhere at the same time;
            that has replaced it here.

        Raises:
            OSError: The registry's folder cannot be written.
        """
        async with self._publishing:
            async with self._looking:
                found = await asyncio.to_thread(self.tree.digests)
            changed = [n for n in found | self._digests if found.get(n) != self._digests.get(n)]
            taken = [await self._put(name, found.get(name)) for name in changed]
        if not all(taken):
            await self.pull()
        return all(taken)

    async def _put(self, name: str, digest: str | None) -> bool:
        content = None if digest is None else self.tree.read(name)
        version = await self.put(self.name, name, content, self._digests.get(name))
        if version is None:
            self._digests[name] = _LOST
            return False
        self._version = version
        self._note(name, digest)
        return True

    def _take(self, changes: Changes) -> None:
        if changes.version < self._version:
            return  # from before what was written here
        self._version = changes.version
        found = self.tree.digests()
        for name in {*self._digests, *changes.digests}:
            if self._digests.get(name) in (found.get(name), _LOST):
                self._replace(name, changes)

    def _replace(self, name: str, changes: Changes) -> None:
        digest = changes.digests.get(name)
        if digest is None:
            self.tree.remove(name)
        elif name in changes.contents:
            self.tree.write(name, changes.contents[name])
        elif digest != self._digests.get(name):
            return  # it was replaced while it was read; another change follows
        self._note(name, digest)

    def _note(self, name: str, digest: str | None) -> None:
        if digest is None:
            self._digests.pop(name, None)
        else:
            self._digests[name] = digest
