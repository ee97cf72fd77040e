"""Arithmetic of runs of integers: positions, and indexes of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vllm_promptcache.sequence.sequence import Run


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
    """Returns what is in ascending `runs` and not in ascending `holes`."""
    return tuple(_pieces(runs, tuple(holes)))


def _pieces(runs: Iterable[Run], holes: tuple[Run, ...]) -> Iterator[Run]:
    for run in runs:
        start = run.start
        for hole in holes:
            if hole.end <= start or hole.start >= run.end:
                continue
            if start < hole.start:
                yield Run(start, hole.start - start)
            start = hole.end
        if start < run.end:
            yield Run(start, run.end - start)
