"""Where new tokens lie between those of modules, so that they see what is before them only.

In a plain prefill a token sees what stands before it. Behind modules that were encoded before, the
paper's prototype lets each new token see all of them, later ones too; here it does not.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TypeAlias

from vllm_promptcache.sequence.runs import merge_runs
from vllm_promptcache.sequence.sequence import InnerTokens, Interleaving, ModuleSpan, Run

PlacedRun: TypeAlias = tuple[Run, int]
"""Indexes of kept tokens of a module, and the position of the first; the others follow it."""


@dataclass(frozen=True, slots=True)
class PlacedSpan:
    """A span and where its tokens lie.

    Attributes:
        span: The span.
        runs: Its tokens, ascending.
    """

    span: ModuleSpan
    runs: tuple[PlacedRun, ...]

    @property
    def end(self) -> int:
        """One past its last position."""
        run, start = self.runs[-1]
        return start + run.num_tokens

    def cut(self, breaks: Sequence[int]) -> PlacedSpan:
        """The same with its runs cut wherever new tokens stand between two of its own.

        So no shared block has tokens on both sides of new ones.

        Args:
            breaks: Where new tokens begin, ascending.
        """
        parts: dict[int, list[Run]] = {}
        for run, start in self.runs:
            parts.setdefault(bisect_right(breaks, start), []).append(run)
        runs = tuple(run for part in parts.values() for run in merge_runs(part))
        return replace(self, span=ModuleSpan(self.span.key, self.span.num_module_tokens, runs))


def placed_runs(kept_position_runs: Iterable[Run], kept: Iterable[Run]) -> Iterator[PlacedRun]:
    """Kept tokens of a module with their positions, cut where these have a gap.

    Args:
        kept_position_runs: Position ids of all its kept tokens.
        kept: Indexes of those that are wanted, ascending.
    """
    positions = iter(kept_position_runs)
    # Indexes of the tokens in the run of positions that was reached.
    first, at = 0, Run(0, 0)
    for run in kept:
        start = run.start
        while start < run.end:
            while first + at.num_tokens <= start:
                first, at = first + at.num_tokens, next(positions)
            end = min(run.end, first + at.num_tokens)
            yield Run(start, end - start), at.start + start - first
            start = end


def inner_runs(spans: Iterable[PlacedSpan], position_runs: Iterable[Run]) -> list[Run]:
    """Those of the new tokens that lie before a module's."""
    end = max((placed.end for placed in spans), default=0)
    return [run for run in position_runs if run.start < end]


def interleave(
    spans: Sequence[PlacedSpan], inner: Sequence[Run], block_size: int
) -> Interleaving | None:
    """Puts tails and new tokens in order.

    Args:
        spans: What the sequence reads, each cut at the starts of `inner`.
        inner: Positions of the new tokens that lie before a module's, see `inner_runs`.
        block_size: Tokens in a KV cache block.

    Returns:
        None if there are no such tokens.
    """
    if not inner:
        return None
    breaks = [run.start for run in inner]
    blocks: list[tuple[int, Run]] = []
    tails: list[tuple[int, int]] = []
    num_blocks = 0
    for placed in spans:
        for run, num_before in _cut_runs(placed, breaks):
            part = ModuleSpan(placed.span.key, placed.span.num_module_tokens, (run,))
            tails += [(num_before, tail.num_tokens) for tail in part.tails(block_size)]
            if num := part.num_full_blocks(block_size):
                blocks.append((num_before, Run(num_blocks, num)))
                num_blocks += num
    seen, num_visible = _visible(blocks, len(inner))
    groups = (InnerTokens(run.num_tokens, n) for run, n in zip(inner, num_visible, strict=True))
    return Interleaving(*_private_order(tails, inner), tuple(groups), seen)


def _cut_runs(placed: PlacedSpan, breaks: Sequence[int]) -> Iterator[tuple[Run, int]]:
    """The runs of a span that is cut, each with the number of groups that lie before it."""
    starts = {run.start: start for run, start in placed.runs}
    for run in placed.span.runs:
        yield run, bisect_right(breaks, starts[run.start])


def _visible(
    blocks: Iterable[tuple[int, Run]], num_groups: int
) -> tuple[tuple[Run, ...], list[int]]:
    """The blocks that groups see in the order in which they come to, and how many each sees.

    Args:
        blocks: Runs of blocks, each with how many groups it is behind.
        num_groups: How many groups there are.
    """
    new: list[list[Run]] = [[] for _ in range(num_groups)]
    for num_before, run in blocks:
        if num_before < num_groups:
            new[num_before].append(run)
    num_new = (sum(run.num_tokens for run in runs) for runs in new)
    return merge_runs(run for runs in new for run in runs), list(accumulate(num_new))


def _private_order(
    tails: Sequence[tuple[int, int]], inner: Sequence[Run]
) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """Where tails and new tokens lie, see `Interleaving`.

    Args:
        tails: For each tail how many groups it is behind, and its tokens.
        inner: The groups.
    """
    # Group i follows the tails that are behind i groups or fewer.
    parts = [(num_before, 0, at, num) for at, (num_before, num) in enumerate(tails)]
    parts += [(index, 1, index, run.num_tokens) for index, run in enumerate(inner)]
    placed = ([Run(0, 0)] * len(tails), [Run(0, 0)] * len(inner))
    end = 0
    for _, which, at, num_tokens in sorted(parts):
        placed[which][at] = Run(end, num_tokens)
        end += num_tokens
    return tuple(placed[0]), tuple(placed[1])
