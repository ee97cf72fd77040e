"""How many blocks a sequence takes at most while its modules become resident."""

from __future__ import annotations

from vllm_promptcache.sequence.block_table import BlockTable
from vllm_promptcache.sequence.codec import PackedModule, Plan
from vllm_promptcache.sequence.room import (
    Way,
    at_once,
    fits_surely,
    in_best_order,
    num_blocks_needed,
    peak,
)
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.sequence.spans import ModuleSpan, SequencePlan
from vllm_promptcache.sequence.spec import ModuleSpec

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
    table = BlockTable.of(SequencePlan((A, W, B), (Run(200, 3),)), BLOCK_SIZE)
    assert num_blocks_needed(table, 27, WAYS.__getitem__) == 1 + 7
    assert peak([A, W, B], 1, WAYS.__getitem__) == 3 + 7


def test_all_at_once_counts_each_module_once() -> None:
    counted: set[bytes] = set()
    assert at_once([B, PRIMER], 1, WAYS.__getitem__, counted) == 1 + 3 + 4
    assert counted == {B.key, PRIMER.key}
    assert at_once([B, A], 1, WAYS.__getitem__, counted) == 1 + 2


def test_what_fits_surely_fits() -> None:
    sequence = SequencePlan((A, W, B), (Run(200, 3),))
    modules = tuple(
        PackedModule(key, way.encode.num_new_tokens, b"") for key, way in WAYS.items() if way.encode
    )
    plan = Plan("schema", (), sequence.spans, modules)
    needed = num_blocks_needed(BlockTable.of(sequence, BLOCK_SIZE), 27, WAYS.__getitem__)

    def fits(num_usable: int) -> bool:
        return fits_surely(plan, plan.spans, 27, block_size=BLOCK_SIZE, num_usable=num_usable)

    assert needed < next(filter(fits, range(1000)))
