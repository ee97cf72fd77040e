"""The tokens of a prompt by their positions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from vllm_promptcache.errors import PlanError
from vllm_promptcache.sequence.runs import Run


@dataclass(frozen=True, slots=True, eq=False)
class PlacedTokens:
    """Tokens in the order of reading, which is that of their positions.

    Attributes:
        token_ids: The tokens, `[num_tokens]`.
        positions: Their position ids, merged.
        indexes: Index of the first token of each run of positions.
    """

    token_ids: Sequence[int]
    positions: Sequence[Run]
    indexes: Sequence[int]

    @staticmethod
    def of(token_ids: Sequence[int], positions: Sequence[Run]) -> PlacedTokens:
        """Tokens with a position each."""
        indexes = accumulate((run.num_tokens for run in positions), initial=0)
        return PlacedTokens(token_ids, positions, tuple(indexes))

    def at(self, run: Run) -> Sequence[int]:
        """The tokens at some positions, `[num_tokens of the run]`.

        Raises:
            PlanError: There is none at one of them.
        """
        number = bisect_right(self.positions, run.start, key=_start) - 1
        if number < 0 or run.end > self.positions[number].end:
            raise PlanError("malformed prompt plan: a module's tokens are missing")
        index = self.indexes[number] + run.start - self.positions[number].start
        return self.token_ids[index : index + run.num_tokens]


def _start(run: Run) -> int:
    return run.start
