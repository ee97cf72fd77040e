"""Tokens of reused modules that are computed again because a schema or a prompt asks for it."""

from __future__ import annotations

from tests.plan.planning import PaperPrompts as Prompts
from tests.plan.planning import engine_order
from vllm_promptcache.sequence.codec import unpack_plan

MODULES = """r1 r2 <module name="a">a1 a2 a3 a4 a5 a6 a7 a8 a9 a10</module>
    <module name="b"{}>b1 b2 b3 b4 b5 b6 b7 b8 b9</module>"""


def repeated(prompts: Prompts, attribute: str = "") -> str:
    """Words of a prompt of both modules that are computed again."""
    plan = prompts.planner.plan(f'<prompt schema="s" {attribute}><a/><b/> end</prompt>')
    assert sum(span.num_tokens for span in plan.sequence.spans) == plan.num_cached_tokens
    tokens = [t for new in plan.new if new.kind == "repeated" for t in new.token_ids]
    return prompts.words.text(tokens)


def test_the_head_of_every_module_but_the_first() -> None:
    prompts = Prompts(MODULES.format(""))
    assert repeated(prompts) == ""
    assert repeated(prompts, 'repair="head:2"') == "a1 a2 b1 b2"
    assert repeated(prompts, 'repair="none"') == ""


def test_what_a_module_says_comes_before_its_schema_and_a_prompt_before_both() -> None:
    prompts = Prompts(MODULES.format(' repair="none"'), 'repair="head:1"')
    assert repeated(prompts) == "a1"
    assert repeated(prompts, 'repair="head:2"') == "a1 a2 b1 b2"


def test_a_module_shorter_than_its_repair_is_computed_as_a_whole() -> None:
    prompts = Prompts(MODULES.format(""))
    plan = prompts.plan("<a/><b/> end")
    again = prompts.planner.plan('<prompt schema="s" repair="head:99"><a/><b/> end</prompt>')
    assert again.sequence.spans == plan.sequence.spans[:1]
    assert again.num_tokens == plan.num_tokens


def test_the_first_module_by_position_is_left_as_it_is() -> None:
    prompts = Prompts('<module name="a">a1 a2</module><module name="b">b1 b2</module> end')
    plan = prompts.planner.plan('<prompt schema="s" repair="head:1"><b/><a/> x</prompt>')
    words = [prompts.words.text(t.token_ids) for t in plan.new]
    assert words == ["b1", "end", "x"]


def test_blocks_around_a_repaired_one_are_read_by_reference() -> None:
    prompts = Prompts('r <module name="a">a1 a2 a3 a4 a5 a6 a7 a8 a9 a10 a11 a12</module>')
    plan = prompts.planner.plan('<prompt schema="s" repair="head:4"><a/> end</prompt>')
    text = prompts.words.text(engine_order(plan))
    assert text == "a5 a6 a7 a8 a9 a10 a11 a12 r a1 a2 a3 a4 end"


def attended(prompts: Prompts, text: str, share: int) -> tuple[int, ...]:
    """For each module that is read, how much it adds to the tokens repaired by attention."""
    pml = f'<prompt schema="s" repair="query:{share}"><a/><b/> {text}</prompt>'
    plan = prompts.planner.plan(pml)
    return unpack_plan(plan.packed, num_prompt_tokens=plan.num_tokens).attended


def test_the_share_of_all_tokens_is_taken_from_modules_that_have_not_seen_all() -> None:
    # The root's two tokens, ten and nine.
    assert attended(Prompts(MODULES.format("")), "end", 20) == (0, 2, 2)
    # Behind the root alone, `a` has seen all there is.
    anchored = Prompts(MODULES.format(""), 'encode="anchored"')
    assert attended(anchored, "end", 20) == (0, 0, 4)
    assert attended(anchored, "end", 100) == (0, 0, 9)
    assert attended(Prompts(MODULES.format(' repair="none"')), "end", 20) == (0, 2, 2)


def test_a_module_without_its_last_token_has_one_less_to_repair() -> None:
    # Without text, the last token of `b` is computed for its logits.
    assert attended(Prompts(MODULES.format("")), "", 100) == (0, 10, 8)


def test_unless_it_is_asked_for_nothing_is_repaired_by_attention() -> None:
    plan = Prompts(MODULES.format("")).planner.plan('<prompt schema="s"><a/><b/> end</prompt>')
    assert unpack_plan(plan.packed, num_prompt_tokens=plan.num_tokens).attended == ()
