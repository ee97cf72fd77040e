"""What the engine must know of a sequence that reads prompt modules.

A prompt and the encode of a module are the same thing to the engine: a sequence that reads the KV
of some modules and computes some new tokens at given positions.
"""

from __future__ import annotations

import msgspec

KEY_BYTES = 32


class Run(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The integers `start, start + 1, ..., start + num_tokens - 1`."""

    start: int
    num_tokens: int

    @property
    def end(self) -> int:
        """One past the last integer of the run."""
        return self.start + self.num_tokens


class ModuleSpan(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Kept tokens of the module `key`, read from its blocks.

    Attributes:
        key: The module's key, SHA-256 (32 bytes).
        num_module_tokens: Kept tokens of the module, whether they are read or not.
        runs: Indexes of those that are read, ascending.
    """

    key: bytes
    num_module_tokens: int
    runs: tuple[Run, ...]

    @property
    def num_tokens(self) -> int:
        """How many tokens are read."""
        return sum(run.num_tokens for run in self.runs)

    def full_blocks(self, block_size: int) -> list[Run]:
        """Indexes of the module's blocks that are read as a whole, mapped by reference."""
        blocks = []
        for run in self.runs:
            first, end = -(-run.start // block_size), run.end // block_size
            if first < end:
                blocks.append(Run(first, end - first))
        return blocks

    def num_full_blocks(self, block_size: int) -> int:
        """Blocks of the span that are mapped by reference."""
        return sum(blocks.num_tokens for blocks in self.full_blocks(block_size))

    def tails(self, block_size: int) -> list[Run]:
        """Indexes of the other tokens, copied slot by slot; each run lies within one block."""
        tails = []
        for run in self.runs:
            # Tokens before the run's first block boundary, then those behind its last one.
            head_end = min(run.end, -(-run.start // block_size) * block_size)
            if run.start < head_end:
                tails.append(Run(run.start, head_end - run.start))
            tail_start = max(head_end, run.end // block_size * block_size)
            if tail_start < run.end:
                tails.append(Run(tail_start, run.end - tail_start))
        return tails

    def num_tail_tokens(self, block_size: int) -> int:
        """Tokens that are copied slot by slot."""
        return self.num_tokens - self.num_full_blocks(block_size) * block_size


class Relocation(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A module at another place than the one it was laid out for.

    Attributes:
        key: The module's key there.
        origin: Key of the module as it was laid out.
        shift: Positions between the two places.
    """

    key: bytes
    origin: bytes
    shift: int


class InnerTokens(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """New tokens between which no module has a token, but behind which one has.

    Attributes:
        num_tokens: How many there are.
        num_visible: Shared blocks that lie before them: the first ones of `Interleaving.blocks`.
    """

    num_tokens: int
    num_visible: int


class Interleaving(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a sequence with new tokens before module tokens lies in its private blocks.

    There its tails and its new tokens follow each other by position. So what lies before a new
    token is some of the shared blocks and a front part of the private ones, and it sees just that.

    Attributes:
        tails: Where the tails lie, as indexes from the first private token on, in their order.
        new: The same for the tokens of all groups, in their order.
        groups: The new tokens that lie before a module's, ascending.
        blocks: Runs of the shared blocks that lie before any of these, by their index in the block
            table; in the order in which the groups come to see them.
    """

    tails: tuple[Run, ...]
    new: tuple[Run, ...]
    groups: tuple[InnerTokens, ...]
    blocks: tuple[Run, ...]

    @property
    def num_new_tokens(self) -> int:
        """New tokens behind which a module has tokens."""
        return sum(group.num_tokens for group in self.groups)


class SequencePlan(msgspec.Struct, frozen=True, array_like=True):
    """The cached part and the positions of the computed part of one sequence.

    Attributes:
        spans: Modules whose KV the sequence reads, in the order of the block table.
        position_runs: Position ids of the new tokens, in the order in which they are computed
            (ascending); generated tokens go on from the last one + 1.
        interleaving: None if all new tokens lie behind all modules.
    """

    spans: tuple[ModuleSpan, ...]
    position_runs: tuple[Run, ...]
    interleaving: Interleaving | None = None

    @property
    def num_cached_tokens(self) -> int:
        """Tokens whose KV is read from modules."""
        return sum(span.num_tokens for span in self.spans)

    @property
    def num_new_tokens(self) -> int:
        """Tokens of the prompt that are computed."""
        return sum(run.num_tokens for run in self.position_runs)

    @property
    def num_attention_rows(self) -> int:
        """Rows of attention that it takes when it is computed in one step."""
        return 1 + (0 if self.interleaving is None else len(self.interleaving.groups))

    @property
    def next_position(self) -> int:
        """Position id of the first generated token."""
        return self.position_runs[-1].end

    def num_blocks(self, num_tokens: int, block_size: int) -> int:
        """Blocks that must be held at once when the sequence is admitted with `num_tokens`.

        Those of all its modules, and its own, into which the modules' tails are copied.
        """
        num_shared = sum(span.num_full_blocks(block_size) for span in self.spans)
        num_modules = sum(-(-span.num_module_tokens // block_size) for span in self.spans)
        return num_modules + -(-num_tokens // block_size) - num_shared


class ModuleSpec(msgspec.Struct, frozen=True, array_like=True):
    """All that is needed to encode a module (1-architecture: "Encode context").

    Attributes:
        key: The module's key.
        sequence: The context it is encoded behind, and the positions of its own tokens.
        token_ids: Own tokens with placeholders, `[num_tokens]`.
        kept_runs: Indexes into `token_ids` of the tokens whose KV is kept (all but placeholders).
    """

    key: bytes
    sequence: SequencePlan
    token_ids: tuple[int, ...]
    kept_runs: tuple[Run, ...]

    @property
    def num_kept_tokens(self) -> int:
        """Tokens whose KV the module holds once it is encoded."""
        return sum(run.num_tokens for run in self.kept_runs)

    @property
    def kept_position_runs(self) -> list[Run]:
        """Position ids of these tokens."""
        runs, first = [], 0
        for positions in self.sequence.position_runs:
            end = first + positions.num_tokens
            for kept in self.kept_runs:
                start, stop = max(first, kept.start), min(end, kept.end)
                if start < stop:
                    runs.append(Run(positions.start + start - first, stop - start))
            first = end
        return runs

    def relocated(self, relocation: Relocation) -> ModuleSpec:
        """The same module encoded at another place, alone: its context stays where it is."""
        runs = tuple(
            Run(run.start + relocation.shift, run.num_tokens) for run in self.sequence.position_runs
        )
        return ModuleSpec(relocation.key, SequencePlan((), runs), self.token_ids, self.kept_runs)
