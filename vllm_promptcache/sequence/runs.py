"""Runs of integers: positions, and indexes of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec


class Run(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The integers `start, start + 1, ..., start + num_tokens - 1`."""

    start: int
    num_tokens: int

    @property
    def end(self) -> int:
        """One past the last integer of the run."""
        return self.start + self.num_tokens


def count(runs: Iterable[Run]) -> int:
    """How many integers there are in some runs."""
    return sum(run.num_tokens for run in runs)


def merge_runs(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Joins ascending runs that touch; leaves out empty ones."""
    merged: list[Run] = []
    for run in runs:
        if run.num_tokens == 0:
            continue
        if merged and merged[-1].end == run.start:
            merged[-1] = Run(merged[-1].start, merged[-1].num_tokens + run.num_tokens)
        else:
            merged.append(run)
    return tuple(merged)


def subtract_runs(runs: Iterable[Run], holes: Iterable[Run]) -> tuple[Run, ...]:
    """Returns what is in ascending `runs` and not in ascending `holes`; takes linear time."""
    return tuple(_pieces(runs, iter(holes)))


def _pieces(runs: Iterable[Run], holes: Iterator[Run]) -> Iterator[Run]:
    hole = next(holes, None)
    for run in runs:
        start = run.start
        while hole is not None and hole.start < run.end:
            if start < hole.start:
                yield Run(start, hole.start - start)
            start = max(start, hole.end)
            if hole.end > run.end:
                break  # it may reach into the next run
            hole = next(holes, None)
        if start < run.end:
            yield Run(start, run.end - start)


def locate(positions: Iterable[Run], wanted: Iterable[Run]) -> Iterator[tuple[Run, int]]:
    """Finds tokens by their indexes: each piece without a gap, with the position of its first one.

    Args:
        positions: Position ids of all tokens, in their order.
        wanted: Indexes of those that are looked for, ascending.
    """
    ahead = iter(positions)
    # Indexes of the tokens in the run of positions that was reached.
    first, at = 0, Run(0, 0)
    for run in wanted:
        start = run.start
        while start < run.end:
            while first + at.num_tokens <= start:
                first, at = first + at.num_tokens, next(ahead)
            end = min(run.end, first + at.num_tokens)
            yield Run(start, end - start), at.start + start - first
            start = end
