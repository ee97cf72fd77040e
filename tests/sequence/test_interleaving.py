"""New tokens between those of modules see what lies before them, against lists of positions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from random import Random

import pytest

from tests.plan.planning import Prompts
from vllm_promptcache.plan import PromptPlan
from vllm_promptcache.sequence.codec import unpack_plan
from vllm_promptcache.sequence.interleaving import PlacedSpan, inner_runs, interleave, placed_runs
from vllm_promptcache.sequence.runs import merge_runs
from vllm_promptcache.sequence.sequence import (
    KEY_BYTES,
    InnerTokens,
    Interleaving,
    ModuleSpan,
    Run,
    SequencePlan,
)

NUM_CASES = 300


def integers(runs: Iterable[Run]) -> list[int]:
    return [integer for run in runs for integer in range(run.start, run.end)]


def runs_of(some: Iterable[int]) -> tuple[Run, ...]:
    return merge_runs(Run(integer, 1) for integer in some)


@dataclass(frozen=True)
class Case:
    """Modules and new tokens at random places.

    Attributes:
        spans: Of the modules, in any order.
        kept: For each, the position of each of its kept tokens, read or not.
        new: Positions of the new tokens.
    """

    spans: list[PlacedSpan]
    kept: list[list[int]]
    new: list[int]

    @classmethod
    def of(cls, seed: int) -> Case:
        """Modules nest where one goes on behind tokens of another."""
        rng = Random(seed)
        num_modules = rng.randrange(1, 5)
        new_share, unread_share = rng.choice([0, 0.2, 0.2, 0.4]), rng.choice([0, 0, 0.1, 0.4])
        kept: list[list[int]] = [[] for _ in range(num_modules)]
        read: list[list[int]] = [[] for _ in range(num_modules)]
        new: list[int] = []
        end = 0
        for _ in range(rng.randrange(1, 20)):
            owner, length = rng.randrange(num_modules), rng.choice([1, 2, 3, 5, 9, 20])
            is_new = rng.random() < new_share
            for position in range(end, end + length):
                is_read = not is_new and rng.random() >= unread_share
                if is_read:
                    read[owner].append(len(kept[owner]))
                if is_read or rng.random() < unread_share:
                    kept[owner].append(position)
                # Kept tokens that are not read may be computed again.
                if is_new or (not is_read and rng.random() < new_share):
                    new.append(position)
            end += length + rng.choice([0, 0, 1, 3])
        numbers = [number for number in range(num_modules) if read[number]]
        rng.shuffle(numbers)
        spans = [placed_span(number, kept[number], read[number]) for number in numbers]
        return cls(spans, [kept[number] for number in numbers], new)

    @property
    def inner(self) -> list[int]:
        """New tokens that lie before a token of a module."""
        last = max((self.positions(number)[-1] for number in range(len(self.spans))), default=-1)
        return [position for position in self.new if position < last]

    def positions(self, number: int) -> list[int]:
        """Where the tokens lie that are read of a module."""
        return [self.kept[number][index] for index in integers(self.spans[number].span.runs)]

    def placed(self, block_size: int) -> Placed:
        """How they are put in order."""
        inner = inner_runs(self.spans, runs_of(self.new))
        cut = [span.cut([run.start for run in inner]) for span in self.spans]
        found = interleave(cut, inner, block_size)
        return Placed([c.span for c in cut], self.kept, self.inner, found, block_size)


def placed_span(number: int, kept: Sequence[int], read: Sequence[int]) -> PlacedSpan:
    span = ModuleSpan(bytes([number] * KEY_BYTES), len(kept), runs_of(read))
    return PlacedSpan(span, tuple(placed_runs(runs_of(kept), span.runs)))


@dataclass(frozen=True)
class Placed:
    """A case that is put in order, with positions in place of tokens.

    Attributes:
        spans: Cut.
        kept: See `Case`.
        inner: Positions of the new tokens that lie before a module's.
        interleaving: How they are put in order.
        block_size: Tokens a block.
    """

    spans: Sequence[ModuleSpan]
    kept: Sequence[Sequence[int]]
    inner: Sequence[int]
    interleaving: Interleaving | None
    block_size: int

    @property
    def shared(self) -> list[list[int]]:
        """Positions in each shared block, in the order of the block table."""
        return [
            [kept[index] for index in range(block * self.block_size, (block + 1) * self.block_size)]
            for span, kept in zip(self.spans, self.kept, strict=True)
            for block in integers(span.full_blocks(self.block_size))
        ]

    @property
    def tails(self) -> list[list[int]]:
        """Positions of each tail, in their order."""
        return [
            [kept[index] for index in integers([tail])]
            for span, kept in zip(self.spans, self.kept, strict=True)
            for tail in span.tails(self.block_size)
        ]

    @property
    def cached(self) -> list[int]:
        """Positions of all tokens of modules."""
        return [position for part in (*self.shared, *self.tails) for position in part]

    def private(self) -> dict[int, int]:
        """Position of the token at each private index, but those of the last new tokens."""
        assert self.interleaving is not None
        tails, inner = self.tails, integers(self.interleaving.new)
        indexes = integers(self.interleaving.tails)
        assert [run.num_tokens for run in self.interleaving.tails] == [len(part) for part in tails]
        pairs = [*zip(indexes, [position for part in tails for position in part], strict=True)]
        pairs += zip(inner, self.inner, strict=True)
        # No two tokens have one place.
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    def seen(self) -> Iterator[tuple[int, list[int]]]:
        """For each of these new tokens the positions that it sees, its own as well."""
        assert self.interleaving is not None
        shared, private = self.shared, self.private()
        order = integers(self.interleaving.blocks)
        positions = iter(self.inner)
        for group, places in zip(self.interleaving.groups, self.interleaving.new, strict=True):
            assert group.num_tokens == places.num_tokens
            blocks = [shared[block] for block in order[: group.num_visible]]
            before = [position for block in blocks for position in block]
            for place in integers([places]):
                yield next(positions), before + [private[index] for index in range(place + 1)]

    def check(self) -> None:
        """All that is promised of the order."""
        private = self.private()
        assert sorted(private) == list(range(len(private)))
        for position, seen in self.seen():
            expected = [other for other in (*self.cached, *self.inner) if other <= position]
            assert sorted(seen) == sorted(expected)


block_sizes = pytest.mark.parametrize("block_size", [1, 3, 4, 16])


@block_sizes
def test_every_new_token_sees_what_lies_before_it(block_size: int) -> None:
    num_inner = num_nested = num_shared = 0
    for seed in range(NUM_CASES):
        case = Case.of(seed)
        placed = case.placed(block_size)
        if placed.interleaving is None:
            continue
        placed.check()
        num_inner += len(placed.inner)
        num_shared += sum(group.num_visible > 1 for group in placed.interleaving.groups)
        owners = sorted((p, n) for n in range(len(case.spans)) for p in case.positions(n))
        num_nested += len([*groupby(owners, lambda owner: owner[1])]) > len(case.spans)
    # There is something to see.
    assert num_inner > 5 * NUM_CASES
    assert num_nested > NUM_CASES / 3
    assert num_shared > NUM_CASES / 5 or block_size == 16


@block_sizes
def test_there_is_no_order_of_its_own_if_and_only_if_new_tokens_come_last(block_size: int) -> None:
    found = set()
    for seed in range(NUM_CASES):
        case = Case.of(seed)
        is_none = case.placed(block_size).interleaving is None
        assert is_none == (not case.inner)
        found.add(is_none)
    assert found == {True, False}


@block_sizes
def test_no_shared_block_lies_on_both_sides_of_a_new_token(block_size: int) -> None:
    num_blocks = 0
    for seed in range(NUM_CASES):
        case = Case.of(seed)
        for block in case.placed(block_size).shared:
            assert len({bisect_left(case.new, position) for position in block}) == 1
            num_blocks += 1
    assert num_blocks > NUM_CASES / 5


def test_spans_are_cut_at_new_tokens_and_nowhere_else() -> None:
    for seed in range(NUM_CASES):
        case = Case.of(seed)
        for number, (span, cut) in enumerate(
            zip(case.spans, case.placed(4).spans, strict=True)  # whatever the block size
        ):
            indexes = integers(span.span.runs)
            places = zip(indexes, case.positions(number), strict=True)
            # New tokens before it, and unread tokens: what tells one run from the next.
            parts = [
                (bisect_left(case.new, position), index - at)
                for at, (index, position) in enumerate(places)
            ]
            sizes = [len([*part]) for _, part in groupby(parts)]
            assert [run.num_tokens for run in cut.runs] == sizes
            assert integers(cut.runs) == indexes
            assert (cut.key, cut.num_module_tokens) == (span.span.key, span.span.num_module_tokens)


def test_tokens_at_positions() -> None:
    """Kept tokens 0 to 9 lie at 5 to 8 and at 20 to 25; those that are wanted get theirs."""
    kept = (Run(5, 4), Run(20, 6))
    wanted = (Run(1, 2), Run(3, 3), Run(9, 1))
    expected = [(Run(1, 2), 6), (Run(3, 1), 8), (Run(4, 2), 20), (Run(9, 1), 25)]
    assert list(placed_runs(kept, wanted)) == expected


def test_an_example() -> None:
    """Modules a, c and b, of which c lies last; new tokens in a, between b and c, behind c.

    Position 0    5  7        12     18  20        29
             aaaaa nn aaaaa    bbbbbb nn  ccccccccc nnnnn
    """
    a = placed_span(1, [*range(5), *range(7, 12)], range(10))
    b = placed_span(2, range(12, 18), range(6))
    c = placed_span(3, range(20, 29), range(9))
    new = (Run(5, 2), Run(18, 2), Run(29, 5))
    assert inner_runs((a, c, b), new) == [Run(5, 2), Run(18, 2)]
    cut = [span.cut([5, 18]) for span in (a, c, b)]
    assert [span.span.runs for span in cut] == [
        (Run(0, 5), Run(5, 5)),
        (Run(0, 9),),
        (Run(0, 6),),
    ]
    # Shared blocks: a0-3; c0-3, c4-7; b0-3. The second block of a would be a4-7.
    # Private tokens: a4 | n5 n6 | a5-7, a8-9, b4-5 | n18 n19 | c8, then the last ones.
    assert interleave(cut, new[:2], 4) == Interleaving(
        tails=(Run(0, 1), Run(3, 3), Run(6, 2), Run(12, 1), Run(8, 2)),
        new=(Run(1, 2), Run(10, 2)),
        groups=(InnerTokens(2, 1), InnerTokens(2, 2)),
        blocks=(Run(0, 1), Run(3, 1)),
    )


def test_new_tokens_behind_everything_cut_nothing() -> None:
    a = placed_span(1, [0, 1, 2, 5, 6, 7], range(6))
    assert inner_runs([a], (Run(8, 3),)) == []
    assert a.cut([]).span == a.span
    assert interleave([a], [], 4) is None
    assert inner_runs([], (Run(0, 3),)) == []


NESTED = """r1 r2 r3 r4 r5 r6 <module name="a" encode="isolated">a1 a2 a3 a4 a5 a6
    <param name="p" len="3"/> a7 a8 <module name="b">b1 b2 b3 b4 b5 b6 b7</module> a9 a10 a11 a12
    </module> r7 r8 <module name="c">c1 <param name="q" len="2"/> c2 c3 c4 c5 c6</module> r9"""


@block_sizes
@pytest.mark.parametrize(
    "children",
    ["<a p='x'><b/></a><c q='1'/> end", "<a p='x y z'/> text <c q=''/>", "<c q='1 2'/> end", "end"],
)
def test_prompts_with_arguments(children: str, block_size: int) -> None:
    prompts = Prompts(NESTED, block_size=block_size)
    plan = prompts.plan(children)
    placed = placed_plan(plan)
    sequence = unpack_plan(plan.packed, num_prompt_tokens=plan.num_tokens).sequence
    assert sequence.interleaving == placed.interleaving
    if not placed.inner:
        assert placed.interleaving is None
        return
    placed.check()


def test_a_prompt_without_reuse_is_one_plain_prefill() -> None:
    plan = Prompts(NESTED).plan("<a p='x'><b/></a><c q='1'/> end", reuse=False)
    assert plan.sequence == SequencePlan((), runs_of(integers(plan.sequence.position_runs)))


def placed_plan(plan: PromptPlan) -> Placed:
    read = [module for module in plan.modules if module.num_tokens]
    kept = [integers(module.layout.kept_position_runs) for module in read]
    last = max(
        positions[index]
        for positions, module in zip(kept, read, strict=True)
        for index in integers(module.reused)
    )
    new = integers(plan.sequence.position_runs)
    return Placed(
        plan.sequence.spans,
        kept,
        [position for position in new if position < last],
        plan.sequence.interleaving,
        plan.block_size,
    )


def test_a_plan_grows_with_its_new_tokens_alone() -> None:
    """Each group of new tokens listed all blocks before it; 800 arguments were 671 KB."""

    def num_bytes(num_imports: int) -> int:
        names = [f"m{i}" for i in range(num_imports)]
        words = " w" * 8
        module = '<module name="{0}">' + words + '<param name="x" len="2"/>' + words + "</module>"
        prompts = Prompts("".join(map(module.format, names)), max_model_len=100_000)
        Random(0).shuffle(names)
        plan = prompts.plan("".join(f'<{name} x="y"/>' for name in names) + "end")
        assert plan.sequence.interleaving is not None
        return len(plan.packed)

    assert num_bytes(400) < 4.5 * num_bytes(100)
