"""How many blocks a sequence takes at most while its modules become resident."""

from __future__ import annotations

from vllm_promptcache.sequence.room import (
    Way,
    at_once,
    fits_surely,
    in_best_order,
    num_blocks_needed,
    peak,
)
from vllm_promptcache.sequence.sequence import ModuleSpan, ModuleSpec, Run, SequencePlan

BLOCK_SIZE = 4


def span(name: str, num_tokens: int) -> ModuleSpan:
    return ModuleSpan(name.encode() * 32, num_tokens, (Run(0, num_tokens),))


def spec(name: str, num_tokens: int, context: tuple[ModuleSpan, ...] = (), kept: int = 0) -> Way:
    """The way of a module of so many tokens, of which all or some are kept."""
    sequence = SequencePlan(context, (Run(100, num_tokens),))
    runs = (Run(0, kept or num_tokens),)
    module = ModuleSpec(name.encode() * 32, sequence, tuple(range(num_tokens)), runs)
    return Way.of(module, BLOCK_SIZE)


PRIMER = span("p", 16)
WAYS = {
    b"p" * 32: spec("p", 16),
    b"a" * 32: spec("a", 8),
    b"b" * 32: spec("b", 12, (PRIMER,)),
    b"w" * 32: spec("w", 20, kept=4),
}
A, B, W = span("a", 8), span("b", 12), span("w", 4)


def test_a_context_counts_while_a_module_is_encoded() -> None:
    # The primer's 4 blocks and 3 of its own; its tail would be copied if it had one.
    assert WAYS[B.key] == Way(3, WAYS[B.key].encode, 3)
    assert peak([B], 1, WAYS.__getitem__) == 7
    assert peak([A, B], 1, WAYS.__getitem__) == 2 + 7
    assert peak([B, A], 1, WAYS.__getitem__) == 7


def test_a_context_that_is_read_as_well_counts_once() -> None:
    assert peak([PRIMER, B], 1, WAYS.__getitem__) == 4 + 3 + 1


def test_placeholders_count_while_they_are_computed() -> None:
    assert WAYS[W.key].num_blocks == 1
    assert peak([W], 1, WAYS.__getitem__) == 5


def test_what_takes_most_for_a_while_comes_first() -> None:
    ordered = in_best_order([A, W, B], WAYS.__getitem__)
    assert [s.key[:1] for s in ordered] == [b"w", b"b", b"a"]
    sequence = SequencePlan((A, W, B), (Run(200, 3),))
    assert num_blocks_needed(sequence, 27, WAYS.__getitem__, BLOCK_SIZE) == 1 + 7
    assert peak([A, W, B], 1, WAYS.__getitem__) == 3 + 7


def test_all_at_once_counts_each_module_once() -> None:
    counted: set[bytes] = set()
    assert at_once([B, PRIMER], 1, WAYS.__getitem__, counted) == 1 + 3 + 4
    assert counted == {B.key, PRIMER.key}
    assert at_once([B, A], 1, WAYS.__getitem__, counted) == 1 + 2


def test_what_fits_surely_fits() -> None:
    sequence = SequencePlan((A, W, B), (Run(200, 3),))
    num_bytes = 4 * 64 + 56  # keys twice, and a byte for each token
    needed = num_blocks_needed(sequence, 27, WAYS.__getitem__, BLOCK_SIZE)
    first = next(n for n in range(1000) if fits_surely(sequence, 27, num_bytes, BLOCK_SIZE, n))
    assert needed < first
