"""Where a sequence's new tokens lie in its blocks, and what each of them sees."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice

from vllm_promptcache.sequence.sequence import InnerTokens, Run, SequencePlan


@dataclass(frozen=True, slots=True)
class IndexOffsets:
    """A number less the index, for the computed tokens of one sequence: its position id, its slot.

    vLLM counts a request's tokens by an index. What is to be used instead of it differs from it by
    an offset that is constant over each run; the last run goes on for generated tokens.

    Attributes:
        starts: Index of the first token of each run, ascending.
        offsets: What to add to an index of that run.
    """

    starts: tuple[int, ...]
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, first: int, runs: Iterable[Run]) -> IndexOffsets:
        """The tokens from index `first` on have the numbers of `runs`."""
        starts, offsets, index = [], [], first
        for run in runs:
            starts.append(index)
            offsets.append(run.start - index)
            index += run.num_tokens
        return cls(tuple(starts), tuple(offsets))

    def slices(self, start: int, num_tokens: int) -> tuple[tuple[int, int], ...]:
        """Offsets of the tokens `[start, start + num_tokens)` as `(num_tokens, offset)` runs."""
        end, run = start + num_tokens, bisect_right(self.starts, start) - 1
        slices = []
        while start < end:
            run_end = min(end, self.starts[run + 1]) if run + 1 < len(self.starts) else end
            slices.append((run_end - start, self.offsets[run]))
            start, run = run_end, run + 1
        return tuple(slices)


@dataclass(frozen=True, slots=True)
class AttentionRow:
    """Some consecutive tokens of a request, and what they see.

    Attributes:
        num_tokens: How many there are.
        num_shared: Shared blocks that they see: the first ones of `AttentionRows.blocks`, None for
            all.
        private: The other blocks that they see.
        num_visible: Tokens in these blocks that the last of them sees; all blocks but the last one
            are full.
    """

    num_tokens: int
    num_shared: int | None
    private: Run
    num_visible: int


@dataclass(frozen=True, slots=True)
class AttentionRows:
    """All tokens that a request computes in a step, and what they see.

    Attributes:
        rows: The tokens.
        blocks: Runs of indexes in the request's block table: shared blocks, in the order in which
            tokens come to see them.
    """

    rows: tuple[AttentionRow, ...]
    blocks: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class PrivateOrder:
    """The private blocks of a sequence with new tokens before module tokens, see `Interleaving`.

    Attributes:
        tails: Indexes of the tails in the sequence, in their order.
        slots: Index of its slot less its own index, for each new token.
        num_new_tokens: New tokens that lie before a module's.
        first: Index of the first of them, as vLLM counts.
        block_size: Tokens a block.
        num_shared_blocks: Blocks before the private ones.
        groups: These tokens with what they see and the index of the first one's slot.
        blocks: Shared blocks in the order in which these tokens come to see them.
    """

    tails: tuple[Run, ...]
    slots: IndexOffsets
    num_new_tokens: int
    first: int
    block_size: int
    num_shared_blocks: int
    groups: tuple[tuple[InnerTokens, int], ...]
    blocks: tuple[Run, ...]

    @classmethod
    def of(
        cls, sequence: SequencePlan, block_size: int, num_shared_blocks: int
    ) -> PrivateOrder | None:
        """The order of a sequence; None if its new tokens all lie behind its modules."""
        if (found := sequence.interleaving) is None:
            return None
        private = num_shared_blocks * block_size
        first, num_inner = sequence.num_cached_tokens, found.num_new_tokens
        inner = [Run(private + run.start, run.num_tokens) for run in found.new]
        last = Run(first + num_inner, sequence.num_new_tokens - num_inner)
        return cls(
            tails=tuple(Run(private + run.start, run.num_tokens) for run in found.tails),
            slots=IndexOffsets.of(first, (*inner, last)),
            num_new_tokens=num_inner,
            first=first,
            block_size=block_size,
            num_shared_blocks=num_shared_blocks,
            groups=tuple(zip(found.groups, (run.start for run in inner), strict=True)),
            blocks=found.blocks,
        )

    @property
    def end(self) -> int:
        """Index of the first token behind which no module's lies."""
        return self.first + self.num_new_tokens

    def rows(self, start: int, num_tokens: int) -> AttentionRows | None:
        """What the tokens `[start, start + num_tokens)` see; None if that is all before each."""
        if start >= self.end:
            return None
        stop = start + num_tokens
        rows = list(self._inner_rows(start, stop))
        if stop > self.end:
            first = self.num_shared_blocks
            private = Run(first, -(-stop // self.block_size) - first)
            rows.append(AttentionRow(stop - max(start, self.end), None, private, stop))
        return AttentionRows(tuple(rows), self.blocks)

    def max_num_rows(self, start: int) -> int:
        """Rows that the tokens from `start` on take, all in one step."""
        if start >= self.end:
            return 1
        ends = accumulate((group.num_tokens for group, _ in self.groups), initial=self.first)
        return 1 + sum(end > start for end in islice(ends, 1, None))

    def _inner_rows(self, start: int, stop: int) -> Iterator[AttentionRow]:
        index = self.first
        for group, slot in self.groups:
            begin, end = max(start, index), min(stop, index + group.num_tokens)
            if begin < end:
                yield self._row(group, end - begin, slot + end - index)
            index += group.num_tokens

    def _row(self, group: InnerTokens, num_tokens: int, slot_end: int) -> AttentionRow:
        size, first = self.block_size, self.num_shared_blocks
        num_private = slot_end - first * size
        private = Run(first, -(-num_private // size))
        num_visible = group.num_visible * size + num_private
        return AttentionRow(num_tokens, group.num_visible, private, num_visible)
