"""Arithmetic of runs, against sets of integers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vllm_promptcache.sequence.block_table import BlockTable
from vllm_promptcache.sequence.runs import Run, merge_runs, subtract_runs
from vllm_promptcache.sequence.spans import KEY_BYTES, ModuleSpan, SequencePlan


@st.composite
def runs(draw: st.DrawFn) -> list[Run]:
    """Ascending runs, some of which touch."""
    result, end = [], 0
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=6)):
        result.append(Run(end + gap, length))
        end = result[-1].end
    return result


def integers(some: list[Run] | tuple[Run, ...]) -> list[int]:
    return [integer for run in some for integer in range(run.start, run.end)]


@given(runs(), runs())
def test_subtraction(minuend: list[Run], holes: list[Run]) -> None:
    left = subtract_runs(minuend, holes)
    assert integers(left) == sorted(set(integers(minuend)) - set(integers(holes)))


@given(runs())
def test_merging(some: list[Run]) -> None:
    merged = merge_runs(some)
    assert integers(merged) == integers(some)
    assert all(a.end < b.start for a, b in pairwise(merged))


@given(runs(), st.integers(1, 8))
def test_a_span_is_full_blocks_and_tails(some: list[Run], block_size: int) -> None:
    spans = (ModuleSpan(bytes(KEY_BYTES), 100, tuple(some)),) if some else ()
    table = BlockTable.of(SequencePlan(spans, (Run(1000, 1),)), block_size)
    shared, tails = ([part.kept for part in parts] for parts in (table.shared, table.tails))
    assert sorted(integers([*shared, *tails])) == integers(some)
    assert all(run.start % block_size == run.num_tokens % block_size == 0 for run in shared)
    assert all(tail.start // block_size == (tail.end - 1) // block_size for tail in tails)
    assert table.num_shared_blocks * block_size == len(integers(shared))
    assert table.num_tail_tokens == len(integers(tails))
