"""Plans that say how their modules could be used exactly."""

from __future__ import annotations

import pytest

from tests.plan.planning import PaperPrompts as Prompts
from vllm_promptcache.sequence.codec import unpack_plan

MODULES = """r1 r2 <module name="a">a1 a2 a3 a4 a5</module>
    <module name="b">b1 <param name="p" len="2"/> b2 b3 b4 b5 b6</module>
    <module name="c">c1 c2 c3 c4 c5</module>
    <module name="d" cache="false">d1 d2</module>"""


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts(MODULES, promotes=True)


def test_a_plan_names_the_chain_of_the_exact_prompt(prompts: Prompts) -> None:
    text = "<a/><c/> end"
    plan = prompts.plan(text)
    exact = prompts.planner.plan(f'<prompt schema="s" encode="exact">{text}</prompt>')
    packed = unpack_plan(plan.packed, num_prompt_tokens=plan.num_tokens)
    assert packed.can_promote
    assert packed.promoted == exact.sequence
    assert packed.links == exact.sequence.spans
    assert exact.prompt_token_ids == plan.prompt_token_ids
    assert plan.detail == {
        "modules": [("", "exact"), ("a", "isolated"), ("c", "isolated")],
        "links": [("a", "exact"), ("c", "exact")],
    }


@pytest.mark.parametrize(
    "prompt",
    [
        "end",  # nothing but the schema's own text
        "<b p='x'/><c/> end",  # the argument comes before nearly everything
    ],
)
def test_prompts_that_are_not_worth_it(prompts: Prompts, prompt: str) -> None:
    assert prompts.plan(prompt).chain is None


def test_modules_that_are_never_cached_may_come_behind(prompts: Prompts) -> None:
    assert prompts.plan("<a/><c/><d/> end").chain is not None


def test_what_is_exact_anyway_is_not_promoted() -> None:
    assert Prompts(MODULES, 'encode="exact"', promotes=True).plan("<a/><c/> x").chain is None
    scaffold = MODULES + '<scaffold modules="a c"/>'
    assert Prompts(scaffold, promotes=True).plan("<a/><c/> x").chain is None


def test_only_where_it_is_asked_for() -> None:
    assert Prompts(MODULES).plan("<a/><c/> end").chain is None
    assert Prompts(MODULES, promotes=True).plan("<a/><c/> end", reuse=False).chain is None
