"""The host-memory tier: which evicted modules are kept there, as the scheduler knows it.

The KV itself lies in the workers (`worker/host_store.py`), which do what is decided here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vllm_promptcache.store.greedy_dual import GreedyDual


@dataclass(frozen=True, slots=True)
class HostModule:
    """A module in host memory.

    Attributes:
        num_tokens: Its kept tokens.
        num_blocks: Blocks it takes, in host memory as in the KV cache.
    """

    num_tokens: int
    num_blocks: int


@dataclass(slots=True)
class HostTier:
    """Keeps what is worth most of the modules that left the KV cache.

    Attributes:
        max_num_blocks: Blocks there is room for.
        num_blocks: Blocks in use.
    """

    max_num_blocks: int
    num_blocks: int = 0
    _modules: dict[bytes, HostModule] = field(default_factory=dict)
    _ranking: GreedyDual = field(default_factory=GreedyDual)
    _kept: bytes | None = None

    @contextmanager
    def keeping(self, key: bytes) -> Iterator[None]:
        """Lets nothing that is put meanwhile drive out this module, if it is here."""
        self._kept = key
        try:
            yield
        finally:
            self._kept = None

    def __contains__(self, key: bytes) -> bool:
        return key in self._modules

    def __len__(self) -> int:
        return len(self._modules)

    def get(self, key: bytes) -> HostModule | None:
        """The module of a key, None if it is not here."""
        return self._modules.get(key)

    def use(self, key: bytes) -> None:
        """Takes note that a module that is here is brought back; it stays here as well."""
        module = self._modules[key]
        self._ranking.use(key, module.num_tokens / module.num_blocks)

    def put(self, key: bytes, num_tokens: int, num_blocks: int) -> list[bytes] | None:
        """Makes room for a module and takes note of it.

        Returns:
            Keys of the modules that leave for it; None if it is not kept, being too large or here
            already.
        """
        kept = self._modules.get(self._kept) if self._kept else None
        room = self.max_num_blocks - (kept.num_blocks if kept else 0)
        if key in self._modules or num_blocks > room:
            return None
        leaving = []
        while self.num_blocks + num_blocks > self.max_num_blocks:
            leaving.append(self._pop_least())
        self._modules[key] = HostModule(num_tokens, num_blocks)
        self.num_blocks += num_blocks
        self.use(key)
        return leaving

    def clear(self) -> None:
        """Forgets everything."""
        self._modules.clear()
        self._ranking.clear()
        self.num_blocks = 0

    def _pop_least(self) -> bytes:
        key = self._ranking.pop_least(lambda key: key != self._kept)
        assert key is not None, "blocks are in use but there is no module"
        self.num_blocks -= self._modules.pop(key).num_blocks
        return key
