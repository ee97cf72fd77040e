"""What a sequence reads of modules, and what it computes.

A prompt and the encode of a module are the same thing to the engine: a sequence that reads the KV
of some modules and computes some new tokens at given positions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from operator import attrgetter

import msgspec

from vllm_promptcache.sequence.runs import Run, count, locate, subtract_runs

KEY_BYTES = 32


class ModuleSpan(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Kept tokens of the module `key`, read from its blocks.

    Attributes:
        key: The module's key, SHA-256 (32 bytes).
        num_module_tokens: Kept tokens of the module, whether they are read or not.
        runs: Indexes of those that are read, ascending.
        positions: Where the sequence has all of them, read or not. Empty where that makes no
            difference: what an encode reads lies before all that it computes.
    """

    key: bytes
    num_module_tokens: int
    runs: tuple[Run, ...]
    positions: tuple[Run, ...] = ()

    @property
    def num_tokens(self) -> int:
        """How many tokens are read."""
        return count(self.runs)

    def read_positions(self) -> list[Run]:
        """Positions of the tokens that are read."""
        return [Run(start, run.num_tokens) for run, start in locate(self.positions, self.runs)]


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


class SequencePlan(msgspec.Struct, frozen=True, array_like=True):
    """What a sequence reads and what it computes.

    Attributes:
        spans: Modules whose KV it reads, in the order of its block table.
        position_runs: Position ids of the new tokens, in the order in which they are computed
            (ascending); generated tokens go on from the last one + 1.
        num_inner_runs: How many of these lie before a token of a module.
    """

    spans: tuple[ModuleSpan, ...]
    position_runs: tuple[Run, ...]
    num_inner_runs: int = 0

    @staticmethod
    def of(spans: Iterable[ModuleSpan], positions: Iterable[Run]) -> SequencePlan:
        """A prompt that reads `spans`, and computes whatever else there is at `positions`."""
        spans = tuple(spans)
        read = sorted((run for s in spans for run in s.read_positions()), key=attrgetter("start"))
        new = subtract_runs(positions, read)
        end = read[-1].end if read else 0
        return SequencePlan(spans, new, bisect_left(new, end, key=attrgetter("start")))

    @property
    def num_cached_tokens(self) -> int:
        """Tokens whose KV is read from modules."""
        return sum(span.num_tokens for span in self.spans)

    @property
    def num_new_tokens(self) -> int:
        """Tokens of the prompt that are computed."""
        return count(self.position_runs)

    @property
    def num_tokens(self) -> int:
        """Its length."""
        return self.num_cached_tokens + self.num_new_tokens

    @property
    def inner_runs(self) -> tuple[Run, ...]:
        """Those of the new tokens that lie before a token of a module."""
        return self.position_runs[: self.num_inner_runs]

    @property
    def num_attention_rows(self) -> int:
        """Rows of attention that it takes when it is computed in one step."""
        return 1 + self.num_inner_runs

    @property
    def next_position(self) -> int:
        """Position id of the first generated token."""
        return self.position_runs[-1].end
