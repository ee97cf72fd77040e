"""Combinations of modules that are encoded again, one behind the other, once they recur.

A request whose modules were encoded alone is approximate. When a combination of modules comes back,
the engine encodes it exactly in a step in which it has nothing else to do; requests that follow
read those modules instead, and equal a plain prefill.
"""

from __future__ import annotations

from collections.abc import Callable

from vllm.v1.request import Request

from vllm_promptcache.compat.requests import reorder_prompt
from vllm_promptcache.core.request import ModularRequest
from vllm_promptcache.core.tiers.tiers import ModuleTiers
from vllm_promptcache.sequence.codec import PackedPlan
from vllm_promptcache.store import ModuleStore
from vllm_promptcache.store.bounded import forget_oldest, forget_oldest_of_size

# Combinations that are counted; those not seen for longest are forgotten.
MAX_NUM_COUNTED = 4096
# Combinations that wait for an idle step, and tokens of their prompts and modules; older ones give
# way. A token takes some ten bytes in a prompt, and a few in a packed module.
MAX_NUM_CANDIDATES = 64
MAX_NUM_CANDIDATE_TOKENS = 1 << 20
_PACKED_TOKEN_BYTES = 3


class Promotions:
    """Says which requests are served exactly, and what is to be encoded for that.

    A combination is named by the last module of its chain, whose key covers all before it. What is
    kept of it is the request that asked for it, with the chain as its sequence.

    Args:
        store: The resident modules.
        tiers: Where others may be.
        after: Requests of a combination after which it is promoted; 0 for never.
        max_blocks: Blocks that promoted modules may hold together.
    """

    def __init__(
        self, store: ModuleStore, tiers: ModuleTiers, *, after: int, max_blocks: int
    ) -> None:
        self._store = store
        self._tiers = tiers
        self._after = after
        self._max_blocks = max_blocks
        # Ordered by time, the oldest first.
        self._counts: dict[bytes, int] = {}
        self._candidates: dict[bytes, ModularRequest] = {}
        self._promoted: set[bytes] = set()
        self._current: ModularRequest | None = None

    def exact(
        self,
        request: Request,
        plan: PackedPlan,
        block_size: int,
        fits: Callable[[ModularRequest], bool],
    ) -> ModularRequest | None:
        """Returns the state of a request that can be served exactly at once, else None.

        Mutates the request: its tokens are then in the order of the exact sequence.

        Args:
            request: A new request.
            plan: Its plan.
            block_size: Tokens a block.
            fits: Whether the pool can hold a request, should its modules be gone again.
        """
        if plan.exact is None:
            return None
        exact = ModularRequest.of(request, plan, plan.exact.sequence, block_size)
        if not fits(exact) or not self.is_ready(exact):
            return None
        exact.exact_paths = plan.exact.paths
        reorder_prompt(request, plan.exact.token_ids)
        return exact

    def is_ready(self, exact: ModularRequest) -> bool:
        """Whether a request can be served exactly at once; if not, takes note that it came.

        Args:
            exact: The request as it is with the chain for its sequence.
        """
        if not self._missing(exact):
            self._store.stats.num_promoted_requests += 1
            return True
        name = _name(exact)
        self._counts[name] = count = self._counts.pop(name, 0) + 1
        forget_oldest(self._counts, MAX_NUM_COUNTED)
        if 0 < self._after <= count:
            self._candidates.pop(name, None)
            self._candidates[name] = exact
            forget_oldest(self._candidates, MAX_NUM_CANDIDATES)
            forget_oldest_of_size(self._candidates, MAX_NUM_CANDIDATE_TOKENS, _num_tokens)
        return False

    def next(self) -> tuple[ModularRequest, bytes] | None:
        """Returns the request to encode for now, and the last module that it lacks.

        The modules before that one are its contexts, so that they are encoded along with it. The
        newest candidate comes first: its request may be followed by more of a conversation.
        """
        last, self._current = self._current, None
        while self._candidates:
            name, exact = self._candidates.popitem()
            missing = self._missing(exact)
            self._store.stats.num_promotions += exact is last and not missing
            # One that was not interrupted and lacks modules all the same does not fit.
            if missing and exact is not last and self._has_room(exact):
                self._promoted.update(key for _, key in exact.span_keys())
                self._candidates[name] = self._current = exact
                return exact, missing[-1]
        return None

    def interrupt(self) -> ModularRequest | None:
        """Returns the request that is encoded for, which is to stop; it stays a candidate."""
        current, self._current = self._current, None
        return current

    def _missing(self, exact: ModularRequest) -> list[bytes]:
        """Keys of the plan's modules that would have to be encoded."""
        store, host = self._store, self._tiers.host
        keys = exact.span_keys()
        return [span.key for span, key in keys if store.lookup(key) is None and key not in host]

    def _has_room(self, exact: ModularRequest) -> bool:
        keys = {key for _, key in exact.span_keys()}
        held = [module for key in self._promoted if (module := self._store.lookup(key))]
        self._promoted = {module.key for module in held}
        num_held = sum(len(module.blocks) for module in held if module.key not in keys)
        size = exact.block_size
        num_needed = sum(-(-span.num_module_tokens // size) for span, _ in exact.span_keys())
        return num_held + num_needed <= self._max_blocks


def _name(exact: ModularRequest) -> bytes:
    return exact.span_keys()[-1][1]


def _num_tokens(exact: ModularRequest) -> int:
    """Tokens that a candidate keeps in memory, about."""
    return exact.request.num_tokens + sum(map(len, exact.modules.values())) // _PACKED_TOKEN_BYTES
