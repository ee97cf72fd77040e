"""The order of a sequence in its blocks: the one place that knows it.

    [full blocks of every module, shared][tails, copied, and new tokens, by position]

The order makes no difference to attention, since positions are rotated into the keys. vLLM counts
the tokens of a sequence in another order, that of its token ids: those in full blocks, those of all
tails, new ones by position. Where new tokens lie before tokens of modules, tails and new tokens are
interleaved in the private blocks, see `InnerOrder`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from vllm_promptcache.sequence.offsets import IndexOffsets
from vllm_promptcache.sequence.placed_tokens import PlacedTokens
from vllm_promptcache.sequence.rows import InnerGroup, InnerOrder
from vllm_promptcache.sequence.runs import Run, count, locate, merge_runs
from vllm_promptcache.sequence.spans import ModuleSpan, SequencePlan


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens of a module that a sequence reads.

    Attributes:
        span: Number of the span that they are of.
        kept: Indexes of the tokens; those of shared blocks are whole blocks.
        num_before: Groups of new tokens that lie before them, of those behind which a module has
            tokens.
    """

    span: int
    kept: Run
    num_before: int


@dataclass(frozen=True, slots=True)
class BlockTable:
    """How a sequence lies in its blocks.

    Attributes:
        sequence: The sequence.
        block_size: Tokens a block.
        shared: What is read as whole blocks, mapped by reference, in the order of the table.
        tails: What else is read, copied slot by slot, in vLLM's order; each lies in one block of
            its module.
        tail_slots: Where the tails lie, as indexes of slots in the sequence's blocks.
        positions: Position id less index of each new token.
        inner: How new tokens lie among the tails, and what they see; None if all of them lie behind
            all modules.
        num_shared_blocks: Blocks that are mapped by reference.
        num_tail_tokens: Tokens of all tails.
    """

    sequence: SequencePlan
    block_size: int
    shared: tuple[Part, ...]
    tails: tuple[Part, ...]
    tail_slots: tuple[Run, ...]
    positions: IndexOffsets
    inner: InnerOrder | None
    num_shared_blocks: int
    num_tail_tokens: int

    @staticmethod
    def of(sequence: SequencePlan, block_size: int) -> BlockTable:
        """Lays a sequence out. Takes linear time in its spans, their pieces and the new tokens."""
        inner = sequence.inner_runs
        breaks = [run.start for run in inner]
        shared: list[Part] = []
        tails: list[Part] = []
        for number, span in enumerate(sequence.spans):
            for run, num_before in _cut(span, breaks):
                _divide(Part(number, run, num_before), block_size, shared, tails)
        num_shared = sum(part.kept.num_tokens for part in shared)
        first = num_shared + sum(tail.kept.num_tokens for tail in tails)
        tail_slots, groups = _private_slots(tails, inner, num_shared)
        order = None
        if inner:
            last = Run(first + count(inner), sequence.num_new_tokens - count(inner))
            blocks, num_visible = _visible(shared, len(inner), block_size)
            order = InnerOrder(
                groups=tuple(map(InnerGroup, groups, num_visible)),
                blocks=blocks,
                slots=IndexOffsets.of(first, (*groups, last)),
                first=first,
                num_tokens=count(inner),
                block_size=block_size,
                num_shared_blocks=num_shared // block_size,
            )
        return BlockTable(
            sequence,
            block_size,
            tuple(shared),
            tuple(tails),
            tail_slots,
            IndexOffsets.of(first, sequence.position_runs),
            order,
            num_shared // block_size,
            first - num_shared,
        )

    @property
    def num_cached_tokens(self) -> int:
        """Tokens whose KV is read from modules: as vLLM counts, they come before all new ones."""
        return self.num_shared_blocks * self.block_size + self.num_tail_tokens

    @property
    def num_inner_tokens(self) -> int:
        """New tokens that lie before tokens of modules."""
        return 0 if self.inner is None else self.inner.num_tokens

    @property
    def inner_end(self) -> int:
        """Index of the first new token behind which no module's lies."""
        return self.num_cached_tokens + self.num_inner_tokens

    @property
    def num_attention_rows(self) -> int:
        """Rows of attention that the sequence takes when it is computed in one step."""
        return 1 + (0 if self.inner is None else len(self.inner.groups))

    @property
    def cached(self) -> tuple[Part, ...]:
        """All that is read, in vLLM's order."""
        return (*self.shared, *self.tails)

    @property
    def slots(self) -> Iterator[Run]:
        """Where all tokens of the sequence lie in its blocks, in vLLM's order."""
        yield Run(0, self.num_shared_blocks * self.block_size)
        yield from self.tail_slots
        first, num_new = self.num_cached_tokens, self.sequence.num_new_tokens
        if self.inner is None:
            yield Run(first, num_new)
            return
        index = first
        for num_tokens, offset in self.inner.slots.slices(first, num_new):
            yield Run(index + offset, num_tokens)
            index += num_tokens

    def num_own_blocks(self, num_tokens: int) -> int:
        """Blocks that the sequence takes beside those it shares, when it has so many tokens."""
        return -(-num_tokens // self.block_size) - self.num_shared_blocks

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that must be held at once when the sequence is admitted with `num_tokens`.

        Those of all its modules, and its own, into which the modules' tails are copied.
        """
        spans = self.sequence.spans
        num_modules = sum(-(-span.num_module_tokens // self.block_size) for span in spans)
        return num_modules + self.num_own_blocks(num_tokens)

    def arrange(self, tokens: PlacedTokens) -> list[int]:
        """Puts the tokens of a prompt in vLLM's order, `[num_tokens]`."""
        arranged: list[int] = []
        for run in self._places():
            arranged += tokens.at(run)
        return arranged

    def _places(self) -> Iterator[Run]:
        """Positions of all tokens in vLLM's order."""
        for parts in (self.shared, self.tails):
            for number, kept in _by_span(parts):
                for run, start in locate(self.sequence.spans[number].positions, kept):
                    yield Run(start, run.num_tokens)
        yield from self.sequence.position_runs


def _by_span(parts: Iterable[Part]) -> Iterator[tuple[int, list[Run]]]:
    """What is read of each span, in the order of the spans."""
    kept: dict[int, list[Run]] = {}
    for part in parts:
        kept.setdefault(part.span, []).append(part.kept)
    return iter(kept.items())


def _cut(span: ModuleSpan, breaks: Sequence[int]) -> Iterator[tuple[Run, int]]:
    """What a span reads, cut where new tokens stand between two of its own.

    So no shared block has tokens on both sides of new ones.

    Args:
        span: The span.
        breaks: Where new tokens begin, ascending.

    Returns:
        Indexes of its tokens, and how many of the breaks lie before them.
    """
    if not breaks:
        yield from ((run, 0) for run in span.runs)
        return
    pieces: dict[int, list[Run]] = {}
    for run, start in locate(span.positions, span.runs):
        pieces.setdefault(bisect_right(breaks, start), []).append(run)
    for num_before, runs in pieces.items():
        yield from ((run, num_before) for run in merge_runs(runs))


def _divide(part: Part, block_size: int, shared: list[Part], tails: list[Part]) -> None:
    """Divides a part into whole blocks of its module and what is left at both ends."""
    run = part.kept
    head_end = min(run.end, -(-run.start // block_size) * block_size)
    tail_start = max(head_end, run.end // block_size * block_size)
    for start, end, parts in (
        (run.start, head_end, tails),
        (head_end, tail_start, shared),
        (tail_start, run.end, tails),
    ):
        if start < end:
            parts.append(Part(part.span, Run(start, end - start), part.num_before))


def _visible(
    shared: Iterable[Part], num_groups: int, block_size: int
) -> tuple[tuple[Run, ...], list[int]]:
    """Shared blocks in the order in which groups come to see them, and how many each sees."""
    new: list[list[Run]] = [[] for _ in range(num_groups)]
    num_blocks = 0
    for part in shared:
        blocks = Run(num_blocks, part.kept.num_tokens // block_size)
        num_blocks = blocks.end
        if part.num_before < num_groups:
            new[part.num_before].append(blocks)
    return merge_runs(run for runs in new for run in runs), list(accumulate(map(count, new)))


def _private_slots(
    tails: Sequence[Part], inner: Sequence[Run], first: int
) -> tuple[tuple[Run, ...], list[Run]]:
    """Slots of the tails and of the groups of new tokens among them.

    Args:
        tails: The tails.
        inner: The groups.
        first: The first private slot.
    """
    # Group i follows the tails that are behind i groups or fewer.
    parts = [(tail.num_before, 0, at, tail.kept.num_tokens) for at, tail in enumerate(tails)]
    parts += [(index, 1, index, run.num_tokens) for index, run in enumerate(inner)]
    slots = ([Run(0, 0)] * len(tails), [Run(0, 0)] * len(inner))
    for _, which, at, num_tokens in sorted(parts):
        slots[which][at] = Run(first, num_tokens)
        first += num_tokens
    return tuple(slots[0]), slots[1]
