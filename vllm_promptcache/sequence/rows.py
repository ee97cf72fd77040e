"""What new tokens see that lie before tokens of modules: each group of them is a row of attention.

In a plain prefill a token sees what stands before it. Behind modules that were encoded before, the
paper's prototype lets each new token see all of them, later ones too; here it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice

from vllm_promptcache.sequence.offsets import IndexOffsets
from vllm_promptcache.sequence.runs import Run


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
class InnerGroup:
    """New tokens between which no module has a token, but behind which one has.

    Attributes:
        slots: Where they lie, as indexes of slots in the sequence's blocks.
        num_visible: Shared blocks that lie before them: the first ones of `InnerOrder.blocks`.
    """

    slots: Run
    num_visible: int


@dataclass(frozen=True, slots=True)
class InnerOrder:
    """How a sequence with new tokens before module tokens lies in its private blocks.

    There its tails and its new tokens follow each other by position. So what lies before a new
    token is some of the shared blocks and a front part of the private ones, and it sees just that.

    Attributes:
        groups: The new tokens that lie before a module's, ascending.
        blocks: Runs of the shared blocks that lie before any of these, by their index in the block
            table; in the order in which the groups come to see them.
        slots: Index of its slot less its own index, for each new token.
        first: Index of the first of them, as vLLM counts.
        num_tokens: How many lie before a module's.
        block_size: Tokens a block.
        num_shared_blocks: Blocks before the private ones.
    """

    groups: tuple[InnerGroup, ...]
    blocks: tuple[Run, ...]
    slots: IndexOffsets
    first: int
    num_tokens: int
    block_size: int
    num_shared_blocks: int

    @property
    def end(self) -> int:
        """Index of the first token behind which no module's lies."""
        return self.first + self.num_tokens

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
        ends = accumulate((group.slots.num_tokens for group in self.groups), initial=self.first)
        return 1 + sum(end > start for end in islice(ends, 1, None))

    def _inner_rows(self, start: int, stop: int) -> Iterator[AttentionRow]:
        index = self.first
        for group in self.groups:
            num_tokens, slot = group.slots.num_tokens, group.slots.start
            begin, end = max(start, index), min(stop, index + num_tokens)
            if begin < end:
                yield self._row(group, end - begin, slot + end - index)
            index += num_tokens

    def _row(self, group: InnerGroup, num_tokens: int, slot_end: int) -> AttentionRow:
        size, first = self.block_size, self.num_shared_blocks
        num_private = slot_end - first * size
        private = Run(first, -(-num_private // size))
        num_visible = group.num_visible * size + num_private
        return AttentionRow(num_tokens, group.num_visible, private, num_visible)
