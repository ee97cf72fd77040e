"""Modules that are encoded one behind the other, so that together they equal a plain prefill.

The tokens of several modules are put in the order of their positions and cut behind each module
into *links*; every link is encoded behind all links before it. A link is a module like any other:
it has a key, is encoded once and is shared by reference by all prompts that begin in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import zip_longest
from operator import attrgetter
from typing import Literal, TypeAlias

import msgspec

from vllm_promptcache.layout.module_layout import ContextSpan, ModuleLayout
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.layout.size import PIECE_BYTES, module_bytes
from vllm_promptcache.plan.pieces import Piece, pieces_of
from vllm_promptcache.sequence.runs import Run, merge_runs

ChainPolicy: TypeAlias = Literal["scaffold", "exact"]

# So many links are of a length before it doubles. Each link names all before it: with many short
# ones, a plan would grow with the square of the prompt.
LINKS_PER_LENGTH = 16

_START = b"chained"


@dataclass(frozen=True, slots=True)
class Chain:
    """Some modules of a prompt, one encoded behind the other.

    Attributes:
        modules: The links, each as a module of its own with the path of the last module in it.
        pieces: The tokens that they hold.
    """

    modules: tuple[ModuleLayout, ...]
    pieces: tuple[Piece, ...]

    @staticmethod
    def of(
        layout: SchemaLayout,
        members: Iterable[ModuleLayout],
        policy: ChainPolicy,
        *,
        block_size: int,
        end: int | None = None,
    ) -> Chain:
        """Chains modules.

        The first links have at least one block each, later ones more. What is left at the end, too
        short for a link, is in none.

        Args:
            layout: Their schema.
            members: The modules, where they are in the prompt. Those that are never cached are
                left out.
            policy: What the chain is made for.
            block_size: Tokens in a KV cache block.
            end: Position at which the chain ends at the latest.
        """
        cached = tuple(m for m in members if m.cached and m.kept_token_ids)
        if end is not None and all(m.kept_position_runs[-1].end <= end for m in cached):
            end = None
        # The root's key has the tenant's salt in it. Indexes of the schema's modules come first.
        args = (cached, end, layout.root.key, layout.num_indexes, policy, block_size)
        # A prompt that begins like an earlier one need not make it again.
        return layout.derived.get(args, lambda: _chain(*args), _num_bytes)


def _num_bytes(chain: Chain) -> int:
    return sum(map(module_bytes, chain.modules)) + PIECE_BYTES * 2 * len(chain.pieces)


def _chain(
    members: Sequence[ModuleLayout],
    end: int | None,
    root_key: bytes,
    first_index: int,
    policy: ChainPolicy,
    block_size: int,
) -> Chain:
    modules: list[ModuleLayout] = []
    links = _cut(_by_position(members, end), block_size)
    key = sha256(_START + root_key).digest()
    for link in links:
        key = _key(key, link)
        modules.append(_module(link, key, modules, first_index + len(modules), policy))
    return Chain(tuple(modules), tuple(piece for link in links for piece in link))


def _by_position(modules: Iterable[ModuleLayout], end: int | None) -> list[Piece]:
    """All kept tokens of some modules, or those before a position, in order of position."""
    pieces = [
        piece if end is None else piece.before(end)
        for module in modules
        for piece in pieces_of(module, [Run(0, module.num_kept_tokens)])
    ]
    return sorted((piece for piece in pieces if piece.num_tokens), key=attrgetter("start"))


def _cut(pieces: Sequence[Piece], block_size: int) -> list[list[Piece]]:
    """Cuts a sequence behind each module, wherever enough for a link has come together.

    Where it is cut does not depend on how much follows, so that prompts that begin alike share.
    """
    links: list[list[Piece]] = []
    link: list[Piece] = []
    link_len = 0
    for piece, following in zip_longest(pieces, pieces[1:]):
        link.append(piece)
        link_len += piece.num_tokens
        is_end = following is None or following.module.path != piece.module.path
        shortest = block_size << len(links) // LINKS_PER_LENGTH
        if is_end and link_len >= shortest:
            links.append(link)
            link, link_len = [], 0
    return links


def _key(previous: bytes, link: Sequence[Piece]) -> bytes:
    """A module's key stands for its tokens, the previous link's for all before them."""
    parts = [(piece.module.key, piece.kept, piece.start) for piece in link]
    return sha256(msgspec.msgpack.encode((previous, parts))).digest()


def _module(
    link: Sequence[Piece],
    key: bytes,
    done: Sequence[ModuleLayout],
    index: int,
    policy: ChainPolicy,
) -> ModuleLayout:
    token_ids = tuple(_token_ids(link))
    runs = merge_runs(Run(piece.start, piece.num_tokens) for piece in link)
    kept_runs = (Run(0, len(token_ids)),)
    return replace(
        link[-1].module,
        index=index,
        start=runs[0].start,
        end=runs[-1].end,
        chain=policy,
        parameters={},
        token_ids=token_ids,
        position_runs=runs,
        encoded_runs=runs,
        kept_runs=kept_runs,
        kept_token_ids=token_ids,
        kept_position_runs=runs,
        context=tuple(ContextSpan(m.index, m.num_kept_tokens) for m in done),
        dependencies=tuple(m.index for m in done),
        role_marks=(),
        key=key,
        packed=b"",
        relocation=None,
    )


def _token_ids(link: Iterable[Piece]) -> Iterator[int]:
    for piece in link:
        yield from piece.module.kept_token_ids[piece.kept.start : piece.kept.end]
