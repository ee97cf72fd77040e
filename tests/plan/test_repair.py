"""Tokens of reused modules that are computed again because a schema or a prompt asks for it."""

from __future__ import annotations

from tests.plan.planning import Prompts

MODULES = """r1 r2 <module name="a">a1 a2 a3 a4 a5 a6 a7 a8 a9 a10</module>
    <module name="b"{}>b1 b2 b3 b4 b5 b6 b7 b8 b9</module>"""


def repeated(prompts: Prompts, attribute: str = "") -> str:
    """Words of a prompt of both modules that are computed again."""
    plan = prompts.planner.plan(f'<prompt schema="s" {attribute}><a/><b/> end</prompt>')
    assert sum(span.num_tokens for span in plan.sequence.spans) == plan.num_cached_tokens
    tokens = [t for new in plan.new if new.kind == "repeated" for t in new.token_ids]
    return prompts.words.text(tokens)


def test_head_and_tail_of_every_module_but_the_first() -> None:
    prompts = Prompts(MODULES.format(""))
    assert repeated(prompts) == ""
    assert repeated(prompts, 'repair="head:2"') == "a1 a2 b1 b2"
    assert repeated(prompts, 'repair="tail:1"') == "a10 b9"
    assert repeated(prompts, 'repair="none"') == ""


def test_what_a_module_says_comes_before_its_schema_and_a_prompt_before_both() -> None:
    prompts = Prompts(MODULES.format(' repair="none"'), 'repair="head:1"')
    assert repeated(prompts) == "a1"
    assert repeated(prompts, 'repair="tail:1"') == "a10 b9"


def test_spread_takes_whole_blocks_of_the_module() -> None:
    prompts = Prompts(MODULES.format(""))
    # Blocks of four tokens: two whole ones in each module, of which half is the second.
    assert repeated(prompts, 'repair="spread:50"') == "a5 a6 a7 a8 b5 b6 b7 b8"
    whole = "a1 a2 a3 a4 a5 a6 a7 a8 b1 b2 b3 b4 b5 b6 b7 b8"
    assert repeated(prompts, 'repair="spread:100"') == whole
    assert repeated(prompts, 'repair="spread:1"') == ""


def test_a_module_shorter_than_its_repair_is_computed_as_a_whole() -> None:
    prompts = Prompts(MODULES.format(""))
    plan = prompts.plan("<a/><b/> end")
    again = prompts.planner.plan('<prompt schema="s" repair="tail:99"><a/><b/> end</prompt>')
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
    text = prompts.words.text(plan.prompt_token_ids)
    assert text == "a5 a6 a7 a8 a9 a10 a11 a12 r a1 a2 a3 a4 end"
