"""How many blocks of the pool a waiting request would take."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.v1.request import Request

from vllm_promptcache.core.encodes import Encodes
from vllm_promptcache.core.request import ModularRequest
from vllm_promptcache.core.tiers import ModuleTiers
from vllm_promptcache.plan.sequence import ModuleSpan
from vllm_promptcache.store import ModuleStore


@dataclass(frozen=True, slots=True)
class BlockDemand:
    """Counts blocks that are free or still to be filled; those that others hold cost nothing.

    Attributes:
        store: The resident modules.
        tiers: Says which modules are relocated rather than encoded.
        encodes: The encodes under way.
        block_size: Tokens a block.
    """

    store: ModuleStore
    tiers: ModuleTiers
    encodes: Encodes
    block_size: int

    def of(self, request: Request, modular: ModularRequest | None, *, is_held: bool) -> int:
        """Blocks that must be free for a request and the modules that it waits for.

        Args:
            request: A waiting request.
            modular: Its state if it reads modules.
            is_held: Whether all of these are pinned.
        """
        if modular is None:
            return self._num_blocks(request.num_tokens)
        if is_held:
            return modular.num_own_blocks
        spans = modular.sequence.spans
        return modular.num_own_blocks + sum(self._to_provide(modular, span) for span in spans)

    def _to_provide(self, modular: ModularRequest, span: ModuleSpan) -> int:
        key = modular.store_key(span.key)
        num_blocks = self._to_bring(key, span.num_module_tokens)
        relocation = self.tiers.relocation_of(modular, span.key)
        if relocation is None or self.store.lookup(key) is not None:
            return num_blocks
        origin = modular.store_key(relocation.origin)
        return num_blocks + self._to_bring(origin, span.num_module_tokens)

    def _to_bring(self, key: bytes, num_tokens: int) -> int:
        if (module := self.store.lookup(key)) is not None:
            return sum(block.ref_cnt == 0 for block in module.blocks)
        # An encode that is under way counts for itself.
        return 0 if key in self.encodes else self._num_blocks(num_tokens)

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)
