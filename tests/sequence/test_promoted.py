"""Prompts that read the first links of their chain, and behind them modules encoded alone."""

from __future__ import annotations

from tests.core.plans import module, placed, plan, span
from vllm_promptcache.sequence.promoted import PromotedPrompt
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.sequence.spans import ModuleSpan, SequencePlan

A, B, C = module("a", 9), module("b", 6), module("c", 4)
SPANS = placed([span(A), span(B), span(C)])
LINKS = tuple(placed([span(module("ab", 15)), span(module("abc", 4))]))
PLAN = plan(SPANS, (A, B, C), (Run(19, 3),), links=LINKS, can_promote=True, attended=(2, 0, 3))


def test_all_links_are_read_alone() -> None:
    promoted = PromotedPrompt.of(PLAN, 2)
    assert promoted.sequence == PLAN.promoted == SequencePlan(LINKS, (Run(19, 3),))
    assert promoted.numbers == promoted.attended == ()


def test_behind_the_first_links_modules_are_read_as_planned() -> None:
    promoted = PromotedPrompt.of(PLAN, 1)
    assert promoted.sequence == SequencePlan((LINKS[0], SPANS[2]), (Run(19, 3),))
    assert promoted.numbers == (2,)
    assert promoted.attended == (0, 3)


def test_a_module_may_go_on_behind_the_links() -> None:
    """Text around others has a part before them and one behind them."""
    around = ModuleSpan(A.key, 9, (Run(0, 9),), (Run(0, 4), Run(10, 5)))
    inner = ModuleSpan(B.key, 6, (Run(1, 4),), (Run(4, 6),))
    links = tuple(placed([span(module("link", 10)), span(module("last", 5))]))
    found = plan([around, inner], (A, B), (Run(4, 1), Run(9, 1), Run(15, 2)), links=links)
    promoted = PromotedPrompt.of(found, 1)
    rest = ModuleSpan(A.key, 9, (Run(4, 5),), around.positions)
    # What is computed again of the inner module is not, since the link has it.
    assert promoted.sequence == SequencePlan((links[0], rest), (Run(15, 2),))
    assert promoted.numbers == (0,)
    assert promoted.attended == ()


def test_no_more_of_a_module_is_repaired_than_is_left_of_it() -> None:
    around = ModuleSpan(A.key, 9, (Run(0, 9),), (Run(0, 7), Run(13, 2)))
    inner = ModuleSpan(B.key, 6, (Run(0, 6),), (Run(7, 6),))
    links = tuple(placed([span(module("link", 13)), span(module("last", 2))]))
    found = plan([around, inner], (A, B), (Run(15, 2),), links=links, attended=(3, 1))
    assert PromotedPrompt.of(found, 1).attended == (0, 2)
