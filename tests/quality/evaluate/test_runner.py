"""Which tokens count as computed again."""

from __future__ import annotations

import pytest

from vllm_promptcache.plan.explain import ExplainedModule, ExplainedTokens, Explanation
from vllm_promptcache.quality.evaluate.contenders import read_contender
from vllm_promptcache.quality.evaluate.runner import count_tokens


def module(path: str, *reused: bool) -> ExplainedModule:
    ids = tuple(range(len(reused)))
    kept = (True,) * len(reused)
    return ExplainedModule(path, 0, ids, ids, ids, kept, reused, (), "isolated", 0, len(reused))


# Four tokens of the schema, five and three of modules, of which one is computed again, a question.
EXPLAINED = Explanation(
    schema="s",
    num_tokens=14,
    num_cached_tokens=11,
    num_new_tokens=3,
    num_attended_tokens=0,
    next_position=14,
    modules=(
        module("", True, True, True, True),
        module("d0", True, True, True, True, True),
        module("d1", True, True, False),
    ),
    new=(
        ExplainedTokens("repeated", "d1", (7,), (11,)),
        ExplainedTokens("text", "", (8, 9), (12, 13)),
    ),
)


@pytest.mark.parametrize(
    ("name", "is_new", "num_recomputed"),
    [
        ("plain", False, 12),
        ("isolated", True, 1),
        ("default+head:1", True, 1),
        ("anchored+query:15", True, 1),
        ("scaffold", True, 1),
        ("exact", True, 12),
        ("exact", False, 1),
    ],
)
def test_tokens_are_counted(name: str, is_new: bool, num_recomputed: int) -> None:
    assert count_tokens(EXPLAINED, 11, read_contender(name), is_new) == (12, num_recomputed)
