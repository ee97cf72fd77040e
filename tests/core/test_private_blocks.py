"""Private blocks of requests with new tokens before module tokens."""

from types import SimpleNamespace

import msgspec
import pytest
from vllm.v1.core.block_pool import BlockPool

from tests.core.plans import BLOCK_SIZE, module, plan, planned_request, raw_request
from vllm_promptcache.compat.scheduler import allocate_ahead
from vllm_promptcache.core.private_blocks import PrivateBlockHasher, order_tokens
from vllm_promptcache.core.request import ModularRequest
from vllm_promptcache.core.residency import ModuleResidency
from vllm_promptcache.core.step_builder import StepBuilder
from vllm_promptcache.sequence.block_table import BlockTable
from vllm_promptcache.sequence.prompt import ModulePrompt
from vllm_promptcache.sequence.runs import Run, count
from vllm_promptcache.sequence.spans import ModuleSpan

# Position 0    5  7        12     18  20        29
#          aaaaa nn aaaaa    bbbbbb nn  ccccccccc nnnnn
A, B, C = module("a", 10), module("b", 6), module("c", 9)
SPANS = (
    ModuleSpan(A.key, 10, (Run(0, 10),), (Run(0, 5), Run(7, 5))),
    ModuleSpan(C.key, 9, (Run(0, 9),), (Run(20, 9),)),
    ModuleSpan(B.key, 6, (Run(0, 6),), (Run(12, 6),)),
)
NEW_RUNS = (Run(5, 2), Run(18, 2), Run(29, 5))
NUM_SHARED, NUM_CACHED, NUM_INNER, NUM_NEW = 4, 25, 4, 9
END = NUM_CACHED + NUM_INNER
NUM_TOKENS = NUM_CACHED + NUM_NEW

# The position of what lies in each slot of its blocks.
SLOTS = [
    *(0, 1, 2, 3),
    *(20, 21, 22, 23),
    *(24, 25, 26, 27),
    *(12, 13, 14, 15),
    *(4, 5, 6, 7),
    *(8, 9, 10, 11),
    *(16, 17, 18, 19),
    *(28, 29, 30, 31),
    *(32, 33),
]
# The position of each computed token, as vLLM counts them from `NUM_CACHED` on.
NEW = [5, 6, 18, 19, 29, 30, 31, 32, 33]

TABLE = BlockTable.of(plan(SPANS, (A, B, C), NEW_RUNS).sequence, BLOCK_SIZE)
ORDER = TABLE.inner

chunked = pytest.mark.parametrize("chunk", [1, 2, 3, 5, NUM_NEW])


def chunks(size):
    """`(start, num_tokens)` of each step of a prefill."""
    starts = range(NUM_CACHED, NUM_TOKENS, size)
    return [(start, min(size, NUM_TOKENS - start)) for start in starts]


def blocks_of(row):
    """Indexes of the blocks that a row sees."""
    shared = [block for run in ORDER.blocks for block in range(run.start, run.end)]
    shared = list(range(NUM_SHARED)) if row.num_shared is None else shared[: row.num_shared]
    return [*shared, *range(row.private.start, row.private.end)]


def seen_by(row):
    """For each token of a row the positions that it sees."""
    blocks = blocks_of(row)
    slots = [b * BLOCK_SIZE + slot for b in blocks for slot in range(BLOCK_SIZE)]
    for num_hidden in reversed(range(row.num_tokens)):
        yield [SLOTS[slot] for slot in slots[: row.num_visible - num_hidden]]


def modular(spans=SPANS, new=NEW_RUNS, token_ids=range(1, 10), request_id="1"):
    """A request that computes these tokens."""
    found = plan(spans, (A, B, C), new)
    places = [position for run in new for position in range(run.start, run.end)]
    ids = dict(zip(places, token_ids, strict=True))
    positions = [p for run in found.positions for p in range(run.start, run.end)]
    request = planned_request(request_id, found, [ids.get(p, 7) for p in positions])
    prompt = ModulePrompt.of(found, request.prompt_token_ids)
    made = ModularRequest(request, prompt, BlockTable.of(found.sequence, BLOCK_SIZE))
    order_tokens(made)
    return made


class Residency:
    """A residency with resident modules."""

    def __init__(self):
        self.pool = BlockPool(65, enable_caching=True, hash_block_size=BLOCK_SIZE)
        self.residency = ModuleResidency(self.pool, BLOCK_SIZE)
        for spec in (A, B, C):
            blocks = self.pool.get_new_blocks(-(-spec.num_kept_tokens // BLOCK_SIZE))
            self.residency.store.commit(spec.key, blocks, spec.num_kept_tokens)

    @staticmethod
    def request(request_id):
        return planned_request(request_id, plan(SPANS, (A, B, C), NEW_RUNS))

    def add(self, request_id):
        request = self.request(request_id)
        self.residency.add(request)
        return request


def private_hashes(modular):
    hashes = PrivateBlockHasher(modular)(modular.request)
    assert len(hashes) == modular.request.num_tokens // BLOCK_SIZE
    return hashes[modular.table.num_shared_blocks :]


@chunked
def test_new_tokens_see_what_lies_before_them_however_a_prefill_is_cut(chunk):
    for start, num_tokens in chunks(chunk):
        rows = ORDER.rows(start, num_tokens)
        if start >= END:
            assert rows is None
            continue
        seen = [positions for row in rows.rows for positions in seen_by(row)]
        new = NEW[start - NUM_CACHED :][:num_tokens]
        assert len(seen) == num_tokens
        for position, positions in zip(new, seen, strict=True):
            assert sorted(positions) == list(range(position + 1))


@chunked
def test_rows_see_whole_blocks_but_for_the_last(chunk):
    for start, num_tokens in chunks(chunk):
        if (rows := ORDER.rows(start, num_tokens)) is None:
            continue
        for row in rows.rows:
            num_blocks = len(blocks_of(row))
            assert row.num_tokens > 0
            assert (num_blocks - 1) * BLOCK_SIZE < row.num_visible <= num_blocks * BLOCK_SIZE


@chunked
def test_new_tokens_lie_by_their_positions_among_tails(chunk):
    placed = []
    for start, num_tokens in chunks(chunk):
        index = start
        for num, offset in ORDER.slots.slices(start, num_tokens):
            placed += range(index + offset, index + num + offset)
            index += num
        assert index == start + num_tokens
    assert [SLOTS[slot] for slot in placed] == NEW


def test_generated_tokens_are_as_vllm_has_them():
    assert (ORDER.end, ORDER.num_tokens) == (END, NUM_INNER)
    assert ORDER.slots.slices(NUM_TOKENS, 3) == ((3, 0),)
    for start in range(END, NUM_TOKENS + 3):
        assert ORDER.rows(start, 1) is None


def test_one_step_has_a_row_for_each_group_and_one_for_the_rest():
    rows = ORDER.rows(NUM_CACHED, NUM_NEW).rows
    assert [(row.num_tokens, row.num_visible) for row in rows] == [(2, 7), (2, 20), (5, 34)]
    assert blocks_of(rows[1]) == [0, 3, 4, 5, 6]
    assert blocks_of(rows[2]) == list(range(9))


@chunked
def test_as_many_rows_are_expected_as_there_may_be(chunk):
    for start, _ in chunks(chunk):
        rows = ORDER.rows(start, NUM_TOKENS - start)
        assert ORDER.max_num_rows(start) == (1 if rows is None else len(rows.rows))
    assert ORDER.max_num_rows(0) == ORDER.max_num_rows(NUM_CACHED) == 3


def test_new_tokens_behind_all_modules_need_no_order():
    moved = msgspec.structs.replace(SPANS[0], positions=(Run(2, 10),))
    table = modular((moved, *SPANS[1:]), (Run(29, 9),)).table
    # A module's full blocks are 2, 2 and 1.
    assert table.inner is None
    assert table.tail_slots == (Run(20, 2), Run(22, 1), Run(23, 2))
    assert table.inner_end == 25


def test_tails_lie_by_their_positions_among_new_tokens():
    assert (TABLE.num_shared_blocks, TABLE.num_tail_tokens) == (NUM_SHARED, 9)
    slots = [(16, 1), (19, 3), (22, 2), (28, 1), (24, 2)]
    assert TABLE.tail_slots == tuple(Run(*slot) for slot in slots)
    assert TABLE.inner_end == END


def test_tails_are_copied_between_the_new_tokens():
    engine = Residency()
    user = engine.add("1")
    shared = [block.block_id for block in engine.residency.map(engine.residency.get(user))]
    kept = {A.key: (*range(5), *range(7, 12)), B.key: range(12, 18), C.key: range(20, 29)}
    position_of = {
        block_id * BLOCK_SIZE + slot: position
        for key, positions in kept.items()
        for i, block_id in enumerate(engine.residency.store.lookup(key).block_ids)
        for slot, position in enumerate(positions[i * BLOCK_SIZE :][:BLOCK_SIZE])
    }
    table = [*shared, 50, 51, 52, 53, 54]
    engine.residency.admit(user, table)
    loads = engine.residency.end_step({}, lambda _: table).loads
    copied = {}
    for source, target in zip(loads.source.tolist(), loads.target.tolist(), strict=True):
        slot = table.index(target // BLOCK_SIZE) * BLOCK_SIZE + target % BLOCK_SIZE
        copied[slot] = position_of[source]
    assert copied == {slot: SLOTS[slot] for slot in copied}
    assert sorted(copied.values()) == [4, 7, 8, 9, 10, 11, 16, 17, 28]
    assert SLOTS[: NUM_SHARED * BLOCK_SIZE] == [
        position_of[block_id * BLOCK_SIZE + slot]
        for block_id in shared
        for slot in range(BLOCK_SIZE)
    ]


@chunked
def test_a_step_tells_of_rows_until_the_last_inner_token(chunk):
    request, builder = modular(), StepBuilder(verify=False)
    for start, num_tokens in chunks(chunk):
        request.request.num_computed_tokens = start
        builder.compute(request, num_tokens, lambda _: [])
        step = builder.take()
        is_inner = start < END
        assert [request_id for request_id, _ in step.position_offsets] == ["1"]
        slots = ("1", ORDER.slots.slices(start, num_tokens))
        assert step.rows == [("1", ORDER.rows(start, num_tokens))][:is_inner]
        assert step.slot_offsets == [slots][:is_inner]


def test_a_request_with_no_order_of_its_own_has_no_rows():
    request, builder = modular(new=(Run(29, NUM_NEW),)), StepBuilder(verify=False)
    request.request.num_computed_tokens = NUM_CACHED
    builder.compute(request, NUM_NEW, lambda _: [])
    step = builder.take()
    assert (step.rows, step.slot_offsets) == ([], [])


def test_equal_requests_share_their_private_blocks():
    assert len(private_hashes(modular())) == 4
    assert private_hashes(modular()) == private_hashes(modular(request_id="2"))


@pytest.mark.parametrize(
    "changes",
    [
        {"token_ids": (1, 2, 3, 0, *range(5, 10))},
        {"token_ids": (0, *range(2, 10))},
        {"new": (Run(5, 2), Run(18, 1), Run(29, 6))},
        {"new": (Run(5, 2), Run(19, 1), Run(29, 6))},
        {"spans": (SPANS[0], *SPANS[:0:-1])},
    ],
    ids=["last token", "first token", "fewer", "positions", "order of modules"],
)
def test_requests_that_differ_between_modules_share_no_private_block(changes):
    ours, theirs = private_hashes(modular()), private_hashes(modular(**changes))
    assert len(ours) == len(theirs) == 4
    assert not set(ours) & set(theirs)


def test_what_differs_behind_all_modules_is_told_by_its_own_block():
    # The last of the full blocks has two of the last tokens.
    ours = private_hashes(modular())
    theirs = private_hashes(modular(token_ids=(*range(1, 7), 0, 8, 9)))
    assert ours[:3] == theirs[:3]
    assert ours[3] != theirs[3]


@pytest.mark.parametrize("new", [NEW_RUNS, (Run(29, NUM_NEW),)], ids=["order", "no order"])
def test_a_longer_prompt_shares_what_it_begins_with(new):
    longer = (*new[:-1], Run(29, new[-1].num_tokens + 4))
    theirs = private_hashes(modular(new=longer, token_ids=range(1, count(longer) + 1)))
    ours = private_hashes(modular(new=new))
    assert theirs[: len(ours)] == ours


def test_private_blocks_are_shared_only_with_all_that_is_between_tails():
    """13 tokens are tails or new between them: 4 blocks of 4, since 3 lack the last one."""
    engine = Residency()
    first, second = engine.add("1"), engine.add("2")
    modular = engine.residency.get(second)
    shared = engine.residency.map(modular)
    assert len(shared) == NUM_SHARED
    private = engine.pool.get_new_blocks(4)
    num_published = NUM_SHARED
    for num_full, num_found in ((3, 0), (4, 4)):
        engine.pool.cache_full_blocks(
            first, shared + private, num_published, NUM_SHARED + num_full, BLOCK_SIZE, 0
        )
        num_published = NUM_SHARED + num_full
        assert engine.residency.map(modular) == shared + private[:num_found]
        assert modular.num_private_hits == num_found
    assert modular.num_private_hit_tokens == 4 * BLOCK_SIZE - 9
    assert modular.num_copied_tokens == 0


def test_blocks_are_published_when_no_token_between_tails_is_missing():
    residency = Residency()
    request, plain = residency.add("1"), raw_request("plain", 8, None)
    may_publish = residency.residency.may_publish
    assert not may_publish(request, END - 1)
    assert may_publish(request, END)
    assert may_publish(plain, 1)
    assert residency.residency.num_ahead(request) == END
    assert residency.residency.num_ahead(plain) == 0


@pytest.mark.parametrize("options", [{}, {"num_lookahead_tokens": 2}])
@pytest.mark.parametrize(
    ("num_computed", "hits", "num_new", "missing"),
    [
        (0, {}, 5, 24),
        (0, {"num_new_computed_tokens": 16, "num_external_computed_tokens": 9}, 1, 3),
        (0, {"num_new_computed_tokens": 16}, 1, 12),
        (25, {}, 2, 2),
        (25, {}, 4, 0),
        (25, {}, 9, 0),
        (29, {}, 1, 0),
    ],
)
def test_slots_are_allocated_up_to_the_last_token_between_tails(
    num_computed, hits, num_new, missing, options
):
    calls = []

    def allocate_slots(request, num_new_tokens, **options):
        calls.append((request, num_new_tokens, options))
        return "blocks"

    manager = SimpleNamespace(allocate_slots=allocate_slots)
    allocate_ahead(manager, lambda request: request.num_ahead)
    request = SimpleNamespace(num_computed_tokens=num_computed, num_ahead=END)
    rest = {**hits, "full_sequence_must_fit": True}
    assert manager.allocate_slots(request, num_new, **rest, **options) == "blocks"
    lookahead = max(missing, options.get("num_lookahead_tokens", 0))
    assert calls == [(request, num_new, {**rest, "num_lookahead_tokens": lookahead})]
