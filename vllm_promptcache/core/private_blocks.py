"""Hashes of a request's private blocks: what follows its modules, reused by the next turn.

The KV of a private block depends on the modules that the request reads, on the tokens before it and
on their positions. So its hash chains from a root that covers the modules, not from vLLM's.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

import msgspec

from vllm_promptcache.compat.requests import adapter_of, reorder_prompt, set_block_hasher

if TYPE_CHECKING:
    from vllm.v1.request import Request

    from vllm_promptcache.core.request import ModularRequest
    from vllm_promptcache.sequence.block_table import BlockTable

_ROOT = b"prompt-module-private"


def order_tokens(modular: ModularRequest) -> None:
    """Puts the tokens of vLLM's request in the order of its sequence in its blocks.

    None of its blocks has a hash then; see `hash_private_blocks`.
    """
    reorder_prompt(modular.request, modular.table.arrange(modular.prompt.tokens))
    set_block_hasher(modular.request, lambda request: [])


def hash_private_blocks(modular: ModularRequest) -> None:
    """Lets a request, and others after it, share private blocks; once its sequence is settled."""
    set_block_hasher(modular.request, PrivateBlockHasher(modular))


def lay_out_anew(modular: ModularRequest, table: BlockTable) -> None:
    """Lets a request that has not begun read something else than before; mutates it.

    Args:
        modular: The request; it may still have to be repaired.
        table: How its sequence lies in its blocks from now on.
    """
    modular.table = table
    order_tokens(modular)
    if not modular.attended:
        hash_private_blocks(modular)


class PrivateBlockHasher:
    """Hashes the full blocks of one request; vLLM calls it whenever the request has new tokens.

    The entries of shared blocks are never looked up or published: they only keep vLLM's list of
    hashes aligned with its block table.

    Args:
        modular: The request, whose modules and positions are part of each hash.
    """

    def __init__(self, modular: ModularRequest) -> None:
        request = modular.request
        spans = [(key, span.runs) for span, key in modular.span_keys()]
        self._modular = modular
        # Keys of modules with an adapter stand for its weights; a prompt may read none.
        adapter, salt = adapter_of(request), request.cache_salt
        self._root = _hash(_ROOT, spans, adapter, salt, _inner_tokens(modular))

    def __call__(self, request: Request) -> list[Any]:
        """Returns the hashes of full blocks behind those that `request` has hashes of."""
        known, size = request.block_hashes, self._modular.table.block_size
        if known and request.num_tokens < (len(known) + 1) * size:
            return []
        num_shared = 0 if known else self._modular.table.num_shared_blocks
        hashes: list[Any] = [self._root] * num_shared
        parent = known[-1] if known else self._root
        first = (len(known) + num_shared + 1) * size
        for end in range(first, request.num_tokens + 1, size):
            parent = self._hash_block(request, parent, end - size, end)
            hashes.append(parent)
        return hashes

    def _hash_block(self, request: Request, parent: bytes, start: int, end: int) -> bytes:
        # Tail tokens come first; they and their positions are given by the root.
        table = self._modular.table
        computed = max(start, table.num_cached_tokens)
        offsets = table.positions.slices(computed, max(end - computed, 0))
        return _hash(parent, list(request.all_token_ids[start:end]), offsets)


def _inner_tokens(modular: ModularRequest) -> Any:
    """The new tokens that lie between tails, with all that says where; None if there are none."""
    table = modular.table
    if table.inner is None:
        return None
    first, num_tokens = table.num_cached_tokens, table.num_inner_tokens
    token_ids = list(modular.request.all_token_ids[first : table.inner_end])
    return token_ids, table.positions.slices(first, num_tokens), table.tail_slots


def _hash(*parts: Any) -> bytes:
    return sha256(msgspec.msgpack.encode(parts)).digest()
