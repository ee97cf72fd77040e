"""Combinations of modules that are encoded again, one behind the other, once they recur.

A request whose modules were encoded alone is approximate. When a combination of modules comes back,
the engine encodes it exactly in what steps leave (`pace`); requests that follow read those modules
instead, and equal a plain prefill.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from vllm.v1.request import Request

from vllm_promptcache.compat.requests import adapter_of
from vllm_promptcache.core.adapters import runs_with
from vllm_promptcache.core.request import ModularRequest
from vllm_promptcache.core.tiers.tiers import ModuleTiers
from vllm_promptcache.sequence.block_table import BlockTable
from vllm_promptcache.sequence.prompt import ModulePrompt
from vllm_promptcache.store import ModuleStore
from vllm_promptcache.store.bounded import forget_oldest, forget_oldest_of_size

# Combinations that are counted; those not seen for longest are forgotten.
MAX_NUM_COUNTED = 4096
# Combinations that wait to be encoded, and tokens of their prompts and modules; older ones give
# way. A token takes some ten bytes in a prompt, and a few in a packed module.
MAX_NUM_CANDIDATES = 64
MAX_NUM_CANDIDATE_TOKENS = 1 << 20
_PACKED_TOKEN_BYTES = 3


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A combination of modules that may be promoted, and the request that asked for it last."""

    prompt: ModulePrompt
    request: Request

    @property
    def adapter(self) -> bytes:
        """What stands in keys for the weights that the request runs with."""
        return adapter_of(self.request)

    @property
    def keys(self) -> list[bytes]:
        """Keys in the store of the links."""
        return [link.key + self.adapter for link in self.prompt.plan.links]

    def promoted(self, block_size: int) -> ModularRequest:
        """The request as one that reads the links (a new object)."""
        table = BlockTable.of(self.prompt.plan.promoted, block_size)
        return ModularRequest(self.request, self.prompt, table)


class Promotions:
    """Says which requests are served exactly, and what is to be encoded for that.

    A combination is named by the last link of its chain, whose key covers all before it.

    Args:
        store: The resident modules.
        tiers: Where others may be.
        block_size: Tokens a block.
        after: Requests of a combination after which it is promoted; 0 for never.
        max_blocks: Blocks that promoted modules may hold together.
    """

    def __init__(
        self,
        store: ModuleStore,
        tiers: ModuleTiers,
        *,
        block_size: int,
        after: int,
        max_blocks: int,
    ) -> None:
        self._store = store
        self._tiers = tiers
        self._block_size = block_size
        self._after = after
        self._max_blocks = max_blocks
        # Ordered by time, the oldest first.
        self._counts: dict[bytes, int] = {}
        self._candidates: dict[bytes, Candidate] = {}
        self._promoted: set[bytes] = set()
        # The one that is encoded for, and how many links it lacked when the last one was begun.
        self._current = b""
        self._num_lacked = 0

    def __bool__(self) -> bool:
        return bool(self._candidates)

    def num_ready(self, prompt: ModulePrompt, request: Request) -> int:
        """How many links of its chain a request can read at once, from the first one on.

        If these are not all, takes note that it came.

        Args:
            prompt: Its prompt, with a chain that may be promoted.
            request: The request.
        """
        if not (missing := self._missing(prompt, adapter := adapter_of(request))):
            return len(prompt.plan.links)
        name = prompt.plan.links[-1].key + adapter
        self._counts[name] = count = self._counts.pop(name, 0) + 1
        forget_oldest(self._counts, MAX_NUM_COUNTED)
        if 0 < self._after <= count:
            self._candidates.pop(name, None)
            self._candidates[name] = Candidate(prompt, request)
            forget_oldest(self._candidates, MAX_NUM_CANDIDATES)
            forget_oldest_of_size(self._candidates, MAX_NUM_CANDIDATE_TOKENS, _num_tokens)
        return prompt.links[missing[0]]

    def served(self, *, is_whole: bool) -> None:
        """Takes note of a request that reads its chain, or the first links of it."""
        if is_whole:
            self._store.stats.num_promoted_requests += 1
        else:
            self._store.stats.num_partly_promoted_requests += 1

    def next(self) -> tuple[ModularRequest, bytes] | None:
        """Returns the request to encode for now, and the first link that it lacks.

        It is asked again for each link: all at once would make whoever comes next wait for it. One
        that was begun goes on, else that comes first which was asked for most often.
        """
        while self._candidates:
            name = self._current if self._current in self._candidates else self._most_frequent()
            found = self._candidates[name]
            missing = self._missing(found.prompt, found.adapter)
            # One that lacks as many as before, although nothing stopped it, does not fit.
            is_stuck = name == self._current and len(missing) >= self._num_lacked
            if missing and not is_stuck and self._has_room(found):
                self._promoted.update(found.keys)
                self._current, self._num_lacked = name, len(missing)
                return found.promoted(self._block_size), missing[0]
            self._store.stats.num_promotions += name == self._current and not missing
            self.give_up(name)
        return None

    def give_up(self, name: bytes | None = None) -> None:
        """Forgets a candidate, by default the one that is encoded for, until it is asked for."""
        self._candidates.pop(self._current if name is None else name, None)
        self._current = b""

    def interrupt(self) -> None:
        """Takes note that what was begun is not done for another's sake; it stays a candidate."""
        self._current = b""

    def forget(self, lora_int_ids: Collection[int]) -> None:
        """Forgets the candidates of adapters whose weights have changed, or are gone."""
        for name, candidate in list(self._candidates.items()):
            if runs_with(candidate.request, lora_int_ids):
                self.give_up(name)

    def _most_frequent(self) -> bytes:
        """Of those that were asked for equally often, the one that was asked for last."""
        return max(reversed(self._candidates), key=lambda name: self._counts.get(name, 0))

    def _missing(self, prompt: ModulePrompt, adapter: bytes) -> list[bytes]:
        """Keys of the plan's links that would have to be encoded."""
        store, host = self._store, self._tiers.host
        keys = ((link.key, link.key + adapter) for link in prompt.plan.links)
        return [key for key, own in keys if store.lookup(own) is None and own not in host]

    def _has_room(self, candidate: Candidate) -> bool:
        keys = set(candidate.keys)
        held = [module for key in self._promoted if (module := self._store.lookup(key))]
        self._promoted = {module.key for module in held}
        num_held = sum(len(module.blocks) for module in held if module.key not in keys)
        links = candidate.prompt.plan.links
        num_needed = sum(-(-link.num_module_tokens // self._block_size) for link in links)
        return num_held + num_needed <= self._max_blocks


def _num_tokens(candidate: Candidate) -> int:
    """Tokens that a candidate keeps in memory, about."""
    plan = candidate.prompt.plan
    num_packed = sum(len(module.recipe) for module in plan.modules)
    return candidate.request.num_tokens + num_packed // _PACKED_TOKEN_BYTES
