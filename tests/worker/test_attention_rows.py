"""Batches with requests that are split into rows, against attention with a mask of positions."""

from dataclasses import fields

import pytest
import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_promptcache.sequence.rows import AttentionRow, AttentionRows
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.worker.attention_rows import RowSplit

BLOCK_SIZE, HEAD_SIZE, MAX_BLOCKS, NUM_BLOCKS = 4, 8, 6, 20

# Requests of a step: one decodes, the others are prefilled.
QUERY_LENS = [1, 6, 4]
TABLES = [[3, 7], [9, 1, 4, 12], [2, 15, 8]]
# The position of what lies in each slot; all new tokens of a step lie behind the others in the
# first and the last request, those of the second are at 5, 6, 8, 13, 14 and 15.
POSITIONS = [
    [*range(6)],
    [*(0, 1, 2, 3), *(9, 10, 11, 12), *(4, 5, 6, 7), *(8, 13, 14, 15)],
    [*range(9)],
]
NEW = [[5], [5, 6, 8, 13, 14, 15], [5, 6, 7, 8]]
ROWS = AttentionRows(
    (
        AttentionRow(2, 1, Run(2, 1), 7),
        AttentionRow(1, 1, Run(2, 2), 9),
        AttentionRow(3, None, Run(2, 2), 16),
    ),
    (Run(0, 1), Run(1, 1)),
)
SPLIT = RowSplit({1: ROWS})
NUM_TOKENS = sum(QUERY_LENS)

blocks = pytest.mark.parametrize("blocks_each", [1, 2])
# With 8 rows of padding there are as many rows as tokens.
padding = pytest.mark.parametrize("num_padding", [0, 2, 8])


def backend_blocks(block_ids, blocks_each):
    """Ids of the backend's blocks in blocks of the KV cache."""
    return [block * blocks_each + i for block in block_ids for i in range(blocks_each)]


def batch_of(blocks_each=1, num_padding=0):
    """The step as vLLM describes it; rows of padding have no tokens."""
    num_reqs = len(TABLES) + num_padding
    starts = [0, *torch.tensor(QUERY_LENS).cumsum(0).tolist(), *[NUM_TOKENS] * num_padding]
    # What is behind a request's blocks in the table is left from others.
    table = torch.full((num_reqs, MAX_BLOCKS * blocks_each), 77, dtype=torch.int32)
    for row, block_ids in zip(table, TABLES, strict=False):
        ids = backend_blocks(block_ids, blocks_each)
        row[: len(ids)] = torch.tensor(ids)
    seq_lens = torch.tensor([*map(len, POSITIONS), *[0] * num_padding], dtype=torch.int32)
    return CommonAttentionMetadata(
        query_start_loc=torch.tensor(starts, dtype=torch.int32),
        query_start_loc_cpu=torch.tensor(starts, dtype=torch.int32),
        seq_lens=seq_lens,
        seq_lens_cpu_upper_bound=seq_lens.clone(),
        num_reqs=num_reqs,
        num_actual_tokens=NUM_TOKENS,
        max_query_len=6,
        max_seq_len=16,
        block_table_tensor=table,
        slot_mapping=torch.arange(100, 100 + NUM_TOKENS),
        positions=torch.tensor([position for new in NEW for position in new]),
        is_prefilling=torch.tensor([False, True, True, *[False] * num_padding]),
    )


def values_of(batch):
    """All fields, tensors as copies."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }


def is_same(left, right):
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    return left == right


@blocks
@padding
def test_a_request_takes_a_row_for_each_part(blocks_each, num_padding):
    batch = batch_of(blocks_each, num_padding)
    split = SPLIT.apply(batch, blocks_each)
    zeros = [0] * num_padding
    starts = [0, 1, 3, 4, 7, 11, *[11] * num_padding]
    for got in (split.query_start_loc, split.query_start_loc_cpu):
        assert got.tolist() == starts
        assert got.dtype == torch.int32
    for got in (split.seq_lens, split.seq_lens_cpu_upper_bound):
        assert got.tolist() == [6, 7, 9, 16, 9, *zeros]
        assert got.dtype == torch.int32
    assert split.is_prefilling.tolist() == [False, True, True, True, True, *[False] * num_padding]
    assert split.num_reqs == split.batch_size() == 5 + num_padding
    # The longest row is the last request now.
    assert split.max_query_len == 4
    assert split.max_seq_len == 16


@blocks
@padding
def test_rows_have_the_blocks_that_they_see(blocks_each, num_padding):
    batch = batch_of(blocks_each, num_padding)
    table = SPLIT.apply(batch, blocks_each).block_table_tensor
    assert table.shape == (5 + num_padding, MAX_BLOCKS * blocks_each)
    assert table.dtype == torch.int32
    for row, block_ids in zip(table, [[3, 7], [9, 4], [9, 4, 12], [9, 1, 4, 12]], strict=False):
        expected = backend_blocks(block_ids, blocks_each)
        assert row[: len(expected)].tolist() == expected
    # Rows of other requests are as they were, whatever is behind their blocks.
    assert torch.equal(table[0], batch.block_table_tensor[0])
    assert torch.equal(table[4:], batch.block_table_tensor[2:])


@blocks
@padding
def test_what_belongs_to_tokens_and_the_batch_of_vllm_stay_as_they_are(blocks_each, num_padding):
    batch = batch_of(blocks_each, num_padding)
    before = values_of(batch)
    split = SPLIT.apply(batch, blocks_each)
    assert all(is_same(value, before[name]) for name, value in values_of(batch).items())
    for name in ("slot_mapping", "positions", "num_actual_tokens", "causal"):
        assert is_same(getattr(split, name), before[name])


def test_what_vllm_has_worked_out_for_requests_is_worked_out_for_rows():
    batch = batch_of()
    assert batch.compute_num_computed_tokens().tolist() == [5, 10, 5]
    assert SPLIT.apply(batch, 1).compute_num_computed_tokens().tolist() == [5, 5, 8, 13, 5]


def test_what_is_worked_out_for_rows_is_not_for_requests():
    batch = batch_of()
    assert SPLIT.apply(batch, 1).compute_num_computed_tokens().tolist() == [5, 5, 8, 13, 5]
    assert batch.compute_num_computed_tokens().tolist() == [5, 10, 5]


def test_several_requests_are_split():
    rows = (AttentionRow(1, 0, Run(1, 1), 2), AttentionRow(3, None, Run(1, 2), 9))
    split = RowSplit({2: AttentionRows(rows, ()), 1: ROWS}).apply(batch_of(num_padding=1), 1)
    assert split.query_start_loc.tolist() == [0, 1, 3, 4, 7, 8, 11, 11]
    assert split.seq_lens.tolist() == [6, 7, 9, 16, 2, 9, 0]
    starts = [row[:3].tolist() for row in split.block_table_tensor[1:6]]
    assert starts[:2] == [[9, 4, 9], [9, 4, 12]]
    assert starts[2:] == [[9, 1, 4], [15, 2, 2], [2, 15, 8]]


def test_a_request_may_take_one_row():
    """All that it computes in the step lies between the same tokens of modules."""
    batch = batch_of()
    before = values_of(batch)
    rows = AttentionRows((AttentionRow(4, 1, Run(2, 1), 7),), (Run(0, 1),))
    split = RowSplit({2: rows}).apply(batch, 1)
    assert split.query_start_loc.tolist() == [0, 1, 7, 11]
    assert split.seq_lens.tolist() == split.seq_lens_cpu_upper_bound.tolist() == [6, 16, 7]
    assert split.block_table_tensor[2, :2].tolist() == [2, 8]
    assert all(is_same(value, before[name]) for name, value in values_of(batch).items())


def test_a_batch_may_lack_what_few_backends_need():
    batch = batch_of().replace(is_prefilling=None, seq_lens_cpu_upper_bound=None, positions=None)
    split = SPLIT.apply(batch, 1)
    assert split.seq_lens.tolist() == [6, 7, 9, 16, 9]
    assert (split.is_prefilling, split.seq_lens_cpu_upper_bound, split.positions) == (None,) * 3


def attention_by_rows(batch, queries, keys, values):
    """What a backend makes of a batch; keys and values are `[num_blocks, block_size, head_size]`.

    The last token of a row sees `seq_lens` tokens of its blocks, each before it one less.
    """
    out = torch.zeros_like(queries)
    starts = batch.query_start_loc.tolist()
    for row in range(batch.num_reqs):
        num_queries = starts[row + 1] - starts[row]
        num_seen = int(batch.seq_lens[row])
        ids = batch.block_table_tensor[row, : -(-num_seen // keys.shape[1])].long()
        for query in range(num_queries):
            seen = num_seen - num_queries + query + 1
            key, value = keys[ids].flatten(0, 1)[:seen], values[ids].flatten(0, 1)[:seen]
            at = starts[row] + query
            out[at] = (key @ queries[at]).softmax(0) @ value
    return out


def attention_by_positions(queries, keys, values):
    """Each token sees the tokens of its request at its own position or before."""
    out, token = torch.zeros_like(queries), 0
    for table, positions, new in zip(TABLES, POSITIONS, NEW, strict=True):
        key = keys[table].flatten(0, 1)[: len(positions)]
        value = values[table].flatten(0, 1)[: len(positions)]
        for position in new:
            scores = (key @ queries[token]).masked_fill(
                torch.tensor(positions) > position, float("-inf")
            )
            out[token] = scores.softmax(0) @ value
            token += 1
    return out


@blocks
@padding
def test_each_token_sees_what_lies_before_it(blocks_each, num_padding):
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, NUM_BLOCKS, BLOCK_SIZE, HEAD_SIZE, generator=generator)
    queries = torch.randn(NUM_TOKENS, HEAD_SIZE, generator=generator)
    expected = attention_by_positions(queries, keys, values)
    # The backend's blocks are parts of those of the cache.
    of_backend = [
        cache.view(NUM_BLOCKS * blocks_each, BLOCK_SIZE // blocks_each, HEAD_SIZE)
        for cache in (keys, values)
    ]
    batch = batch_of(blocks_each, num_padding)
    split = SPLIT.apply(batch, blocks_each)
    torch.testing.assert_close(attention_by_rows(split, queries, *of_backend), expected)
    # In the batch as it was, the tokens of the first two rows see others.
    differences = (attention_by_rows(batch, queries, *of_backend) - expected).abs().amax(1)
    assert (differences > 1e-3).tolist() == [False, *[True] * 3, *[False] * 7]
