"""What is reused, what is computed again, and in which order the engine gets it."""

from __future__ import annotations

import pytest

from tests.plan.planning import Prompts, engine_order
from vllm_promptcache.layout import ROOT
from vllm_promptcache.plan import PromptPlan
from vllm_promptcache.sequence.codec import unpack_plan
from vllm_promptcache.sequence.prompt import ModulePrompt
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.sequence.spans import ModuleSpan

SCHEMA = """r1 r2 r3 r4 r5 <module name="a">a1 a2 a3 a4 a5 a6</module>
    <module name="b">b1 <param name="p" len="2"/> b2</module>
    <module name="c" cache="false">c1 <param name="q" len="2"/> c2 <module name="d">d1 d2</module>
      c3</module>"""


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts(SCHEMA)


def words(prompts: Prompts, plan: PromptPlan) -> str:
    return prompts.words.text(engine_order(plan))


def test_full_blocks_then_tails_then_new_tokens(prompts: Prompts) -> None:
    plan = prompts.plan("<b p='x'/><a/> end")
    assert words(prompts, plan) == "r1 r2 r3 r4 a1 a2 a3 a4 r5 b1 b2 a5 a6 x end"
    assert [span.num_tokens for span in plan.sequence.spans] == [5, 2, 6]
    assert plan.sequence.position_runs == (Run(12, 1), Run(15, 1))
    assert (plan.num_tokens, plan.num_cached_tokens, plan.num_new_tokens) == (15, 13, 2)
    assert plan.next_position == 16


def test_the_order_follows_the_block_size() -> None:
    prompts = Prompts(SCHEMA, block_size=2)
    assert words(prompts, prompts.plan("<a/> end")) == "r1 r2 r3 r4 a1 a2 a3 a4 a5 a6 r5 end"


def test_the_last_token_is_computed_again_where_a_prompt_ends_with_a_module(
    prompts: Prompts,
) -> None:
    plan = prompts.plan("<a/>")
    assert [(tokens.kind, tokens.owner, tokens.start) for tokens in plan.new] == [
        ("repeated", "a", 10)
    ]
    assert words(prompts, plan) == "r1 r2 r3 r4 a1 a2 a3 a4 r5 a5 a6"
    assert [(item.layout.path, item.num_tokens) for item in plan.modules] == [("", 5), ("a", 5)]


def test_the_last_token_by_position_counts(prompts: Prompts) -> None:
    plan = prompts.plan("<b p=''/><a/>")
    assert [(tokens.owner, tokens.start) for tokens in plan.new] == [("b", 14)]
    assert [(item.layout.path, item.num_tokens) for item in plan.modules][1:] == [
        ("b", 1),
        ("a", 6),
    ]


def test_a_module_of_one_token_is_not_read_when_it_is_computed_again() -> None:
    prompts = Prompts('<module name="a">one</module>')
    plan = prompts.plan("<a/>")
    assert plan.sequence.spans == ()
    assert [(item.layout.path, item.num_tokens) for item in plan.modules] == [("", 0), ("a", 0)]
    assert plan.num_new_tokens == plan.num_tokens == 1


def test_an_argument_at_the_end_is_new_enough() -> None:
    prompts = Prompts('<module name="a">one <param name="p" len="3"/></module>')
    plan = prompts.plan("<a p='x'/>")
    assert [tokens.kind for tokens in plan.new] == ["argument"]
    # Positions of the parameter that the argument leaves free stay free.
    assert plan.next_position == 2
    assert [tokens.kind for tokens in prompts.plan("<a p=''/>").new] == ["repeated"]


def test_modules_that_are_never_cached_are_computed_in_every_request(prompts: Prompts) -> None:
    plan = prompts.plan("<c q='x'/> end")
    assert [(t.kind, t.owner, prompts.words.text(t.token_ids), t.start) for t in plan.new] == [
        ("repeated", "c", "c1", 15),
        ("argument", "c:q", "x", 16),
        ("repeated", "c", "c2", 18),
        ("repeated", "c", "c3", 21),
        ("text", "", "end", 22),
    ]
    assert [item.layout.path for item in plan.modules] == [""]


def test_a_module_within_one_that_is_never_cached(prompts: Prompts) -> None:
    plan = prompts.plan("<c q='x'><d/></c>")
    assert [item.layout.path for item in plan.modules] == ["", "c/d"]
    assert plan.new[-1].owner == "c"


def test_no_tokens_at_all() -> None:
    prompts = Prompts('<module name="a"/>')
    assert prompts.refused("<a/>").message == "the prompt has no tokens"


def test_no_position_is_left_for_an_answer() -> None:
    fits = Prompts(SCHEMA, max_model_len=25)
    assert fits.plan("<a/> one two").next_position == 13
    error = fits.refused("<c q='x'/> one two three")
    assert error.message == (
        "the prompt takes 25 positions, which leaves none of the model's 25 for an answer"
    )
    assert (error.line, error.column) == (1, 1)
    assert fits.plan("<c q='x'/> one two").next_position == 24


def test_baseline_is_one_prefill_of_the_same_tokens_at_the_same_positions(
    prompts: Prompts,
) -> None:
    pml = "<b p='x'/><a/><c q='y'/> end"
    plan, plain = prompts.plan(pml), prompts.plan(pml, reuse=False)
    assert words(prompts, plain) == ("r1 r2 r3 r4 r5 a1 a2 a3 a4 a5 a6 b1 x b2 c1 y c2 c3 end")
    assert plain.sequence.spans == plain.modules == ()
    assert plain.sequence.position_runs == (
        Run(0, 13),
        Run(14, 3),
        Run(18, 1),
        Run(21, 2),
    )
    assert plain.next_position == plan.next_position
    assert sorted(plain.prompt_token_ids) == sorted(plan.prompt_token_ids)
    assert unpack_plan(plain.packed, num_prompt_tokens=plain.num_tokens).modules == ()


def test_baseline_of_a_prompt_that_ends_with_a_module(prompts: Prompts) -> None:
    plain = prompts.plan("<a/>", reuse=False)
    assert words(prompts, plain) == "r1 r2 r3 r4 r5 a1 a2 a3 a4 a5 a6"
    assert plain.sequence.position_runs == (Run(0, 11),)


def test_a_plan_carries_its_modules_and_their_contexts_once() -> None:
    prompts = Prompts(
        """r <module name="a" encode="anchored">a <module name="b" encode="anchored">b b</module>
        <module name="c" encode="anchored">c c</module></module>"""
    )
    plan = prompts.plan("<c/><b/> end")
    packed = unpack_plan(plan.packed, num_prompt_tokens=plan.num_tokens)
    root, a, b, c = prompts.layout.modules
    assert [module.key for module in packed.modules] == [root.key, a.key, c.key, b.key]
    assert packed.sequence == plan.sequence
    prompt = ModulePrompt.of(packed, plan.prompt_token_ids)
    for module in (root, a, c, b):
        assert prompt.spec(module.key).token_ids == module.token_ids


def test_warm_plans_read_every_module_but_its_last_token() -> None:
    prompts = Prompts(
        """r r <module name="one">1</module><module name="a" encode="anchored">a1 a2 a3</module>
        <module name="never" cache="false">x y</module>
        <module name="p"><param name="q" len="2"/></module>"""
    )
    root, _, a, *_ = prompts.layout.modules
    first, second = prompts.planner.warm_plans("s")
    assert first.sequence.spans == (ModuleSpan(root.key, 2, (Run(0, 1),), (Run(0, 2),)),)
    assert second.sequence.spans == (ModuleSpan(a.key, 3, (Run(0, 2),), (Run(3, 3),)),)
    assert prompts.words.text(second.prompt_token_ids) == "a1 a2 a3"
    assert second.sequence.position_runs == (Run(5, 1),)
    packed = unpack_plan(second.packed, num_prompt_tokens=3)
    assert [module.key for module in packed.modules] == [root.key, a.key]
    # The prompt has no token of the context.
    prompt = ModulePrompt.of(packed, second.prompt_token_ids)
    assert prompt.spec(root.key).token_ids == root.token_ids
    assert prompt.spec(a.key).token_ids == a.token_ids
    assert second.modules[-1].layout.index > ROOT
