"""The order of a sequence in its blocks, against lists of positions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from random import Random

import pytest

from tests.plan.planning import Prompts
from vllm_promptcache.plan import PromptPlan
from vllm_promptcache.sequence.block_table import BlockTable, Part
from vllm_promptcache.sequence.codec import unpack_plan
from vllm_promptcache.sequence.offsets import IndexOffsets
from vllm_promptcache.sequence.placed_tokens import PlacedTokens
from vllm_promptcache.sequence.rows import InnerGroup
from vllm_promptcache.sequence.runs import Run, locate, merge_runs
from vllm_promptcache.sequence.spans import KEY_BYTES, ModuleSpan, SequencePlan

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

    spans: list[ModuleSpan]
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
        new.append(end)
        numbers = [number for number in range(num_modules) if read[number]]
        rng.shuffle(numbers)
        spans = [module_span(number, kept[number], read[number]) for number in numbers]
        return cls(spans, [kept[number] for number in numbers], new)

    @property
    def sequence(self) -> SequencePlan:
        """What the engine is told of it."""
        read = [p for number in range(len(self.spans)) for p in self.positions(number)]
        found = SequencePlan.of(self.spans, runs_of(sorted({*read, *self.new})))
        assert integers(found.position_runs) == self.new
        return found

    @property
    def inner(self) -> list[int]:
        """New tokens that lie before a token of a module."""
        last = max((self.positions(number)[-1] for number in range(len(self.spans))), default=-1)
        return [position for position in self.new if position < last]

    def positions(self, number: int) -> list[int]:
        """Where the tokens lie that are read of a module."""
        return [self.kept[number][index] for index in integers(self.spans[number].runs)]

    def laid_out(self, block_size: int) -> LaidOut:
        """How they are put in order."""
        return LaidOut(BlockTable.of(self.sequence, block_size), self.kept, self.inner)


def module_span(number: int, kept: Sequence[int], read: Iterable[int]) -> ModuleSpan:
    return ModuleSpan(bytes([number] * KEY_BYTES), len(kept), runs_of(read), runs_of(kept))


@dataclass(frozen=True)
class LaidOut:
    """A sequence that is laid out, with positions in place of tokens.

    Attributes:
        table: How it lies in its blocks.
        kept: See `Case`.
        inner: Positions of the new tokens that lie before a module's.
    """

    table: BlockTable
    kept: Sequence[Sequence[int]]
    inner: Sequence[int]

    def positions(self, part: Part) -> list[int]:
        """Where some tokens lie that are read."""
        return [self.kept[part.span][index] for index in integers([part.kept])]

    @property
    def shared(self) -> list[list[int]]:
        """Positions in each shared block, in the order of the block table."""
        size = self.table.block_size
        found = [position for part in self.table.shared for position in self.positions(part)]
        assert all(
            part.kept.start % size == part.kept.num_tokens % size == 0 for part in self.table.shared
        )
        return [found[at : at + size] for at in range(0, len(found), size)]

    @property
    def tails(self) -> list[list[int]]:
        """Positions of each tail, in their order."""
        return [self.positions(tail) for tail in self.table.tails]

    @property
    def cached(self) -> list[int]:
        """Positions of all tokens of modules."""
        return [position for part in (*self.shared, *self.tails) for position in part]

    @property
    def first(self) -> int:
        """The first private slot."""
        return self.table.num_shared_blocks * self.table.block_size

    def private(self) -> dict[int, int]:
        """Position of the token in each private slot, but those of the last new tokens."""
        inner = self.table.inner
        places = integers(self.table.tail_slots)
        assert [run.num_tokens for run in self.table.tail_slots] == [
            len(part) for part in self.tails
        ]
        pairs = [*zip(places, [position for part in self.tails for position in part], strict=True)]
        groups = () if inner is None else inner.groups
        pairs += zip(integers(group.slots for group in groups), self.inner, strict=True)
        # No two tokens have one place.
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    def seen(self) -> Iterator[tuple[int, list[int]]]:
        """For each of these new tokens the positions that it sees, its own as well."""
        assert self.table.inner is not None
        shared, private = self.shared, self.private()
        order = integers(self.table.inner.blocks)
        positions = iter(self.inner)
        for group in self.table.inner.groups:
            blocks = [shared[block] for block in order[: group.num_visible]]
            before = [position for block in blocks for position in block]
            for place in integers([group.slots]):
                inside = [private[slot] for slot in range(self.first, place + 1)]
                yield next(positions), before + inside

    def check(self) -> None:
        """All that is promised of the order."""
        private, table = self.private(), self.table
        assert sorted(private) == list(range(self.first, self.first + len(private)))
        assert table.inner_end == self.first + len(private)
        assert sorted(integers(table.slots)) == list(range(table.sequence.num_tokens))
        # Tokens that stand for their positions, put in order.
        read = sorted((*self.cached, *integers(table.sequence.position_runs)))
        arranged = table.arrange(PlacedTokens.of(read, runs_of(read)))
        assert arranged == [*self.cached, *integers(table.sequence.position_runs)]
        if table.inner is None:
            return
        for position, seen in self.seen():
            expected = [other for other in (*self.cached, *self.inner) if other <= position]
            assert sorted(seen) == sorted(expected)


block_sizes = pytest.mark.parametrize("block_size", [1, 3, 4, 16])


@block_sizes
def test_every_new_token_sees_what_lies_before_it(block_size: int) -> None:
    num_inner = num_nested = num_shared = 0
    for seed in range(NUM_CASES):
        case = Case.of(seed)
        laid_out = case.laid_out(block_size)
        laid_out.check()
        if laid_out.table.inner is None:
            continue
        num_inner += len(laid_out.inner)
        num_shared += sum(group.num_visible > 1 for group in laid_out.table.inner.groups)
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
        is_none = case.laid_out(block_size).table.inner is None
        assert is_none == (not case.inner)
        found.add(is_none)
    assert found == {True, False}


@block_sizes
def test_no_shared_block_lies_on_both_sides_of_a_new_token(block_size: int) -> None:
    num_blocks = 0
    for seed in range(NUM_CASES):
        case = Case.of(seed)
        for block in case.laid_out(block_size).shared:
            assert len({bisect_left(case.new, position) for position in block}) == 1
            num_blocks += 1
    assert num_blocks > NUM_CASES / 5


@block_sizes
def test_all_that_is_read_is_in_the_table_once(block_size: int) -> None:
    """As whole blocks where no new token and no unread one is in between."""
    for seed in range(NUM_CASES):
        case = Case.of(seed)
        table = case.laid_out(block_size).table
        for number, span in enumerate(case.spans):
            kept = [part.kept for part in table.cached if part.span == number]
            assert sorted(integers(kept)) == integers(span.runs)
        for tail in table.tails:
            assert tail.kept.start // block_size == (tail.kept.end - 1) // block_size
            assert tail.kept.num_tokens < block_size


def test_tokens_at_positions() -> None:
    """Kept tokens 0 to 9 lie at 5 to 8 and at 20 to 25; those that are wanted get theirs."""
    kept = (Run(5, 4), Run(20, 6))
    wanted = (Run(1, 2), Run(3, 3), Run(9, 1))
    expected = [(Run(1, 2), 6), (Run(3, 1), 8), (Run(4, 2), 20), (Run(9, 1), 25)]
    assert list(locate(kept, wanted)) == expected


def test_an_example() -> None:
    """Modules a, c and b, of which c lies last; new tokens in a, between b and c, behind c.

    Position 0    5  7        12     18  20        29
             aaaaa nn aaaaa    bbbbbb nn  ccccccccc nnnnn
    """
    a = module_span(1, [*range(5), *range(7, 12)], range(10))
    b = module_span(2, range(12, 18), range(6))
    c = module_span(3, range(20, 29), range(9))
    sequence = SequencePlan.of((a, c, b), (Run(0, 34),))
    assert sequence.position_runs == (Run(5, 2), Run(18, 2), Run(29, 5))
    assert sequence.inner_runs == (Run(5, 2), Run(18, 2))
    table = BlockTable.of(sequence, 4)
    # Shared blocks: a0-3; c0-3, c4-7; b0-3. The second block of a would be a4-7.
    assert table.shared == (Part(0, Run(0, 4), 0), Part(1, Run(0, 8), 2), Part(2, Run(0, 4), 1))
    # Private tokens: a4 | n5 n6 | a5-7, a8-9, b4-5 | n18 n19 | c8, then the last ones.
    assert [tail.kept for tail in table.tails] == [
        *(Run(4, 1), Run(5, 3), Run(8, 2)),
        *(Run(8, 1), Run(4, 2)),
    ]
    assert table.tail_slots == (Run(16, 1), Run(19, 3), Run(22, 2), Run(28, 1), Run(24, 2))
    assert table.inner is not None
    assert table.inner.groups == (InnerGroup(Run(17, 2), 1), InnerGroup(Run(26, 2), 2))
    assert table.inner.blocks == (Run(0, 1), Run(3, 1))
    assert (table.num_cached_tokens, table.inner_end, table.num_attention_rows) == (25, 29, 3)
    assert table.positions == IndexOffsets.of(25, sequence.position_runs)


def test_new_tokens_behind_everything_cut_nothing() -> None:
    a = module_span(1, [0, 1, 2, 5, 6, 7], range(6))
    table = BlockTable.of(SequencePlan.of([a], (Run(0, 3), Run(5, 6))), 4)
    assert table.inner is None
    assert table.shared == (Part(0, Run(0, 4), 0),)
    assert table.tail_slots == (Run(4, 2),)
    assert BlockTable.of(SequencePlan((), (Run(0, 3),)), 4).cached == ()


NESTED = """r1 r2 r3 r4 r5 r6 <module name="a" encode="isolated">a1 a2 a3 a4 a5 a6
    <param name="p" len="3"/> a7 a8 <module name="b">b1 b2 b3 b4 b5 b6 b7</module> a9 a10 a11 a12
    </module> r7 r8 <module name="c">c1 <param name="q" len="2"/> c2 c3 c4 c5 c6</module> r9"""


@block_sizes
@pytest.mark.parametrize(
    "children",
    ["<a p='x'><b/></a><c q='1'/> end", "<a p='x y z'/> text <c q=''/>", "<c q='1 2'/> end", "end"],
)
def test_prompts_with_arguments(children: str, block_size: int) -> None:
    plan = Prompts(NESTED, block_size=block_size).plan(children)
    unpacked = unpack_plan(plan.packed, num_prompt_tokens=plan.num_tokens)
    assert unpacked.sequence == plan.sequence
    laid_out = laid_out_plan(plan)
    assert (laid_out.table.inner is None) == (not laid_out.inner)
    laid_out.check()


def test_a_prompt_without_reuse_is_one_plain_prefill() -> None:
    plan = Prompts(NESTED).plan("<a p='x'><b/></a><c q='1'/> end", reuse=False)
    assert plan.sequence == SequencePlan((), runs_of(integers(plan.sequence.position_runs)))


def laid_out_plan(plan: PromptPlan) -> LaidOut:
    kept = [integers(module.layout.kept_position_runs) for module in plan.modules if module.reused]
    sequence = plan.sequence
    read = [run.end for span in sequence.spans for run in span.read_positions()]
    last = max(read) - 1
    inner = [position for position in integers(sequence.position_runs) if position < last]
    return LaidOut(BlockTable.of(sequence, plan.block_size), kept, inner)


def test_a_plan_grows_with_its_new_tokens_alone() -> None:
    """Each group of new tokens listed all blocks before it; 800 arguments were 671 KB."""

    def num_bytes(num_imports: int) -> int:
        names = [f"m{i}" for i in range(num_imports)]
        words = " w" * 8
        module = '<module name="{0}">' + words + '<param name="x" len="2"/>' + words + "</module>"
        prompts = Prompts("".join(map(module.format, names)), max_model_len=100_000)
        Random(0).shuffle(names)
        plan = prompts.plan("".join(f'<{name} x="y"/>' for name in names) + "end")
        assert plan.sequence.inner_runs
        return len(plan.packed)

    assert num_bytes(400) < 4.5 * num_bytes(100)
