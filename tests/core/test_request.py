"""Position offsets and what has to move after an encode."""

import pytest

from vllm_promptcache.core.request import EncodeRequest
from vllm_promptcache.sequence.block_table import BlockTable
from vllm_promptcache.sequence.offsets import IndexOffsets
from vllm_promptcache.sequence.prompt import ModulePrompt
from vllm_promptcache.sequence.runs import Run

from .plans import module, plan, raw_request, span


def positions(offsets, start, num_tokens):
    """Position ids by the runs that `slices` returns."""
    ids, index = [], start
    for num, offset in offsets.slices(start, num_tokens):
        ids += [i + offset for i in range(index, index + num)]
        index += num
    return ids


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 9])
def test_positions_do_not_depend_on_how_a_prefill_is_cut(chunk):
    runs = (Run(3, 2), Run(20, 1), Run(21, 4))
    offsets = IndexOffsets.of(10, runs)
    expected = [3, 4, 20, 21, 22, 23, 24, 25, 26]  # two generated tokens go on
    ids = [i for start in range(10, 19, chunk) for i in positions(offsets, start, chunk)]
    assert ids[: len(expected)] == expected


@pytest.mark.parametrize(
    ("spec", "moves"),
    [
        (module("whole", 6), False),
        (module("placeholder last", 6, kept=(Run(0, 4),)), False),
        (module("placeholder first", 6, kept=(Run(2, 4),)), True),
        (module("placeholder inside", 6, kept=(Run(0, 2), Run(4, 2))), True),
        (module("context in full blocks", 6, context=(span(module("c", 8)),)), False),
        (module("context with a tail", 6, context=(span(module("c", 9)),)), True),
    ],
    ids=lambda value: None,
)
def test_kept_tokens_move_only_if_something_lies_before_them(spec, moves):
    request, table = (
        raw_request("e", spec.sequence.num_tokens, None),
        BlockTable.of(spec.sequence, 4),
    )
    prompt = ModulePrompt.of(plan([], [spec]), [])
    encode = EncodeRequest(request, prompt, table, spec=spec, key=spec.key)
    assert encode.needs_compaction is moves
