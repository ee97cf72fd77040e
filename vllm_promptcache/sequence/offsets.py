"""Numbers of a sequence's tokens that differ from vLLM's index by what seldom changes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from vllm_promptcache.sequence.runs import Run


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
