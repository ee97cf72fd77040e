"""How many blocks of the pool a waiting request would take."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from cachetools import LRUCache
from vllm.v1.request import RequestStatus

from vllm_promptcache.core.admission.encodes import Encodes
from vllm_promptcache.core.request import EncodeRequest, ModularRequest
from vllm_promptcache.core.tiers.tiers import ModuleTiers
from vllm_promptcache.sequence.room import Way, fits_surely, num_blocks_needed
from vllm_promptcache.store import ModuleStore

# Modules whose way into the cache is remembered, so that their text is unpacked once.
MAX_NUM_WAYS = 4096


@dataclass(frozen=True, slots=True)
class BlockDemand:
    """Counts blocks that are free or still to be filled; those that others hold cost nothing.

    Attributes:
        store: The resident modules.
        tiers: Says which modules are relocated or brought back rather than encoded.
        encodes: The encodes under way.
        block_size: Tokens a block.
    """

    store: ModuleStore
    tiers: ModuleTiers
    encodes: Encodes
    block_size: int
    _ways: LRUCache[bytes, Way] = field(default_factory=lambda: LRUCache(MAX_NUM_WAYS))

    def needed(self, modular: ModularRequest, num_tokens: int) -> int:
        """Blocks that the cache must have for a request with so many tokens; about, if it has them.

        Raises:
            PlanError: A packed module of its plan is malformed.
        """
        plan, table, size = modular.prompt.plan, modular.table, self.block_size
        spans = table.sequence.spans
        num_usable = self.store.block_pool.num_gpu_blocks - 1  # one is vLLM's null block
        if fits_surely(plan, spans, num_tokens, block_size=size, num_usable=num_usable):
            return table.num_blocks(num_tokens)
        return num_blocks_needed(table, num_tokens, lambda key: self.encoded(modular, key))

    def encoded(self, modular: ModularRequest, key: bytes) -> Way:
        """How a module of a plan becomes resident by an encode.

        Raises:
            PlanError: The packed module is malformed.
        """
        store_key = modular.store_key(key)
        if (way := self._ways.get(store_key)) is None:
            spec = modular.prompt.spec(modular.prompt.origin(key))
            way = self._ways[store_key] = Way.of(spec, self.block_size)
        return way

    def now(self, modular: ModularRequest, key: bytes, others: Collection[bytes]) -> Way:
        """How a module of a plan becomes resident as things are.

        Args:
            modular: The request.
            key: The module's key in its plan.
            others: Keys in the store of modules that others have been counted for.

        Raises:
            PlanError: The packed module is malformed.
        """
        store_key = modular.store_key(key)
        if store_key in others:
            return Way(0)
        if (module := self.store.lookup(store_key)) is not None:
            return Way(sum(block.ref_cnt == 0 for block in module.blocks))
        if (encode := self.encode_for(modular, key)) is not None and is_running(encode):
            return Way(0)  # its blocks are among the encode's
        way = self.encoded(modular, key)
        return Way(way.num_blocks) if self._is_near(modular, key) else way

    def encode_for(self, modular: ModularRequest, key: bytes) -> EncodeRequest | None:
        """The encode under way that makes a module of a plan, or what it is relocated from."""
        relocation = self.tiers.relocation_of(modular, key)
        origin = key if relocation is None else relocation.origin
        return self.encodes.get(modular.store_key(origin))

    def _is_near(self, modular: ModularRequest, key: bytes) -> bool:
        """Whether a module that is not resident is brought back or relocated at once."""
        relocation = self.tiers.relocation_of(modular, key)
        if relocation is None:
            return modular.store_key(key) in self.tiers.host
        # Where there is no room for a copy, the other one moves.
        origin = modular.store_key(relocation.origin)
        return self.store.lookup(origin) is not None or origin in self.tiers.host


def is_running(modular: ModularRequest) -> bool:
    """Whether a request has its blocks."""
    return modular.request.status == RequestStatus.RUNNING
