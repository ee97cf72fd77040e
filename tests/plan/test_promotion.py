"""Plans that say how their modules could be used exactly."""

from __future__ import annotations

import pytest

from tests.plan.planning import Prompts
from vllm_promptcache.sequence.codec import unpack_plan

MODULES = """r1 r2 <module name="a">a1 a2 a3 a4 a5</module>
    <module name="b">b1 <param name="p" len="2"/> b2 b3 b4 b5 b6</module>
    <module name="c">c1 c2 c3 c4 c5</module>
    <module name="d" cache="false">d1 d2</module>"""


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts(MODULES, promotes=True)


def test_the_exact_plan_has_the_same_tokens(prompts: Prompts) -> None:
    plan = prompts.plan("<a/><c/> end")
    assert plan.exact is not None
    assert sorted(plan.exact.prompt_token_ids) == sorted(plan.prompt_token_ids)
    assert plan.exact.next_position == plan.next_position
    assert {m.layout.policy for m in plan.exact.modules} == {"exact"}
    packed = unpack_plan(plan.packed, num_prompt_tokens=plan.num_tokens)
    assert packed.exact is not None
    assert packed.exact.sequence == plan.exact.sequence
    assert packed.exact.token_ids == plan.exact.prompt_token_ids
    assert packed.exact.paths == ["a", "c"]


@pytest.mark.parametrize(
    "prompt",
    [
        "end",  # nothing but the schema's own text
        "<b p='x'/><c/> end",  # the argument comes before nearly everything
    ],
)
def test_prompts_that_are_not_worth_it(prompts: Prompts, prompt: str) -> None:
    assert prompts.plan(prompt).exact is None


def test_modules_that_are_never_cached_may_come_behind(prompts: Prompts) -> None:
    assert prompts.plan("<a/><c/><d/> end").exact is not None


def test_what_is_exact_anyway_is_not_promoted() -> None:
    assert Prompts(MODULES, 'encode="exact"', promotes=True).plan("<a/><c/> x").exact is None
    scaffold = MODULES + '<scaffold modules="a c"/>'
    assert Prompts(scaffold, promotes=True).plan("<a/><c/> x").exact is None


def test_only_where_it_is_asked_for() -> None:
    assert Prompts(MODULES).plan("<a/><c/> end").exact is None
    assert Prompts(MODULES, promotes=True).plan("<a/><c/> end", reuse=False).exact is None
