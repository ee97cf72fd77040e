"""Repair by attention: what a prompt's last tokens attend to is computed again, the rest is reused.

A first pass over the modules as they are, the probe, says how much the last tokens attend to each
token. The chunks attended to the most are then computed in the context of the prompt, each token
behind what lies before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_promptcache.core.request import ModularRequest
from vllm_promptcache.sequence.interleaving import PlacedSpan, inner_runs, interleave, placed_runs
from vllm_promptcache.sequence.sequence import ModuleSpan, Run, SequencePlan
from vllm_promptcache.steps.slots import ranges

Integers = npt.NDArray[np.int64]
Attention = npt.NDArray[np.float32]
Chosen = npt.NDArray[np.bool_]

# Tokens are repaired by so many, so that most blocks are still mapped by reference.
CHUNK_SIZE = 16
# Chunks are numbered from span to span with such gaps that those of different spans differ.
_CHUNKS_A_SPAN = 1 << 32


@dataclass(frozen=True, slots=True)
class CachedTokens:
    """The cached tokens of a sequence in its order: full blocks, then tails.

    Attributes:
        spans: Number of the span of each, `[num_cached_tokens]`.
        kept: Its index among the kept tokens of the module.
        positions: Its position id.
    """

    spans: Integers
    kept: Integers
    positions: Integers

    @classmethod
    def of(cls, modular: ModularRequest) -> CachedTokens:
        """Looks up where a request's modules have their tokens.

        Raises:
            PlanError: A packed module of the plan is malformed.
        """
        spans = modular.sequence.spans
        ordered = _in_table(spans, modular.block_size)
        positions = [_positions(modular, span) for span in spans]
        return cls(
            np.concatenate([np.full(len(kept), number) for number, kept in ordered]),
            np.concatenate([kept for _, kept in ordered]),
            np.concatenate([positions[number][kept] for number, kept in ordered]),
        )


def _in_table(spans: Sequence[ModuleSpan], block_size: int) -> list[tuple[int, Integers]]:
    """The kept tokens that spans read, in the order of the block table, with each span's number."""
    blocks, tails = [], []
    for number, span in enumerate(spans):
        if whole := span.full_blocks(block_size):
            runs = [(run.start * block_size, run.num_tokens * block_size) for run in whole]
            blocks.append((number, ranges(runs)))
        if rest := span.tails(block_size):
            tails.append((number, ranges((run.start, run.num_tokens) for run in rest)))
    return [*blocks, *tails]


def _positions(modular: ModularRequest, span: ModuleSpan) -> Integers:
    runs = modular.spec_of(span.key).kept_position_runs
    return ranges([(run.start, run.num_tokens) for run in runs])


@dataclass(frozen=True, slots=True)
class Repaired:
    """A request some of whose cached tokens are computed again.

    Attributes:
        sequence: What it reads and computes.
        span_numbers: For each span of it, its number in the sequence that it was made from.
        token_ids: The prompt's tokens in its order.
    """

    sequence: SequencePlan
    span_numbers: list[int]
    token_ids: list[int]


def most_attended(modular: ModularRequest, attention: Attention) -> Chosen:
    """Chooses which cached tokens of a request are computed again, `[num_cached_tokens]`.

    Chunks of the modules that the plan names, by the sum of the attention to their tokens.

    Args:
        modular: The request; not changed.
        attention: To each cached token, `[num_cached_tokens]`.
    """
    counts = modular.attended
    ordered = _in_table(modular.sequence.spans, modular.block_size)
    is_candidate = np.concatenate([np.full(len(kept), counts[at] > 0) for at, kept in ordered])
    numbers = [at * _CHUNKS_A_SPAN + kept // CHUNK_SIZE for at, kept in ordered]
    chunks, of_token = np.unique(np.concatenate(numbers)[is_candidate], return_inverse=True)
    sums = np.bincount(of_token, weights=attention[is_candidate])
    sizes = np.bincount(of_token)
    best = np.argsort(-sums, kind="stable")
    # As many as come nearest to the number of tokens wanted.
    num_chosen = np.searchsorted(sizes[best].cumsum() - sizes[best] / 2, sum(counts))
    is_best = np.zeros(len(chunks), dtype=np.bool_)
    is_best[best[:num_chosen]] = True
    is_chosen = np.zeros(len(is_candidate), dtype=np.bool_)
    is_chosen[is_candidate] = is_best[of_token]
    return is_chosen


def repair(modular: ModularRequest, chosen: Chosen) -> Repaired:
    """Lays out a request with some of its cached tokens computed again.

    Args:
        modular: The request; not changed.
        chosen: Which tokens, `[num_cached_tokens]`.

    Raises:
        PlanError: A packed module of the plan is malformed.
    """
    cached = CachedTokens.of(modular)
    token_ids = np.array(modular.request.prompt_token_ids, dtype=np.int64)
    reused, new = np.split(token_ids, [len(cached.kept)])
    runs = [(run.start, run.num_tokens) for run in modular.sequence.position_runs]
    positions = np.concatenate([cached.positions[chosen], ranges(runs)])
    order = positions.argsort()
    new = np.concatenate([reused[chosen], new])[order]
    spans = _spans(modular, cached, ~chosen)
    sequence = _sequence(list(spans.values()), _runs(positions[order]), modular.block_size)
    numbers = list(spans)
    kept = [
        _tokens(cached, reused, numbers[at])[kept]
        for at, kept in _in_table(sequence.spans, modular.block_size)
    ]
    return Repaired(sequence, numbers, np.concatenate([*kept, new]).tolist())


def _tokens(cached: CachedTokens, token_ids: Integers, span: int) -> Integers:
    """The tokens of a span by their index among the kept ones of its module."""
    is_its = cached.spans == span
    tokens = np.zeros(cached.kept[is_its].max() + 1, dtype=np.int64)
    tokens[cached.kept[is_its]] = token_ids[is_its]
    return tokens


def _spans(modular: ModularRequest, cached: CachedTokens, is_kept: Chosen) -> dict[int, PlacedSpan]:
    """What is still reused, by the number of the span."""
    spans = {}
    for number, span in enumerate(modular.sequence.spans):
        kept = np.sort(cached.kept[is_kept & (cached.spans == number)])
        if runs := _runs(kept):
            position_runs = modular.spec_of(span.key).kept_position_runs
            found = ModuleSpan(span.key, span.num_module_tokens, runs)
            spans[number] = PlacedSpan(found, tuple(placed_runs(position_runs, runs)))
    return spans


def _sequence(
    spans: Sequence[PlacedSpan], position_runs: tuple[Run, ...], block_size: int
) -> SequencePlan:
    inner = inner_runs(spans, position_runs)
    cut = [placed.cut([run.start for run in inner]) for placed in spans]
    interleaving = interleave(cut, inner, block_size)
    return SequencePlan(tuple(placed.span for placed in cut), position_runs, interleaving)


def _runs(numbers: Integers) -> tuple[Run, ...]:
    """Ascending integers as runs."""
    starts = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
    lengths = np.diff(starts, append=len(numbers))
    return tuple(map(Run, numbers[starts].tolist(), lengths.tolist()))
