"""What a client is told that its modules are read as."""

from __future__ import annotations

import pytest

from tests.plan.planning import Prompts

MODULES = """r1 r2 <module name="a">a1 a2 a3 a4 a5 a6</module>
    <module name="b">b1 b2 b3 b4 b5 b6</module>
    <module name="c" encode="isolated">c1 c2 c3 c4 c5 c6</module>
    <module name="d">d1 <param name="p" len="2"/> d2 d3 d4 d5</module>"""


def read_as(prompt: str, attributes: str = "", children: str = MODULES) -> dict[str, str]:
    plan = Prompts(children, attributes).planner.plan(prompt)
    return dict(plan.detail["modules"])


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<a/><b/> end", {"": "exact", "a": "exact", "b": "primed"}),
        ("<b/><c/> end", {"": "exact", "b": "exact", "c": "isolated"}),
        # It has seen the placeholder.
        ("<d p='x'/> end", {"": "exact", "d": "anchored"}),
    ],
)
def test_what_has_seen_all_that_is_before_it_is_exact(
    prompt: str, expected: dict[str, str]
) -> None:
    text = f'<prompt schema="s">{prompt}</prompt>'
    assert read_as(text, 'layout="compact"') == expected


def test_text_behind_modules_has_not_seen_them() -> None:
    text = '<prompt schema="s"><a/> end</prompt>'
    assert read_as(text, children=MODULES + " r3")[""] == "isolated"
    assert read_as(text)[""] == "exact"


def test_modules_whose_first_tokens_are_computed_again_are_repaired() -> None:
    text = '<prompt schema="s" repair="head:2"><a/><b/> end</prompt>'
    assert read_as(text) == {"": "exact", "a": "exact", "b": "repaired"}


def test_that_the_last_token_is_computed_for_its_logits_is_no_repair() -> None:
    assert read_as('<prompt schema="s"><a/><b/></prompt>')["b"] == "primed"


def test_exact_prompts_and_scaffolds_are_exact() -> None:
    text = '<prompt schema="s" encode="exact"><a/><c/> end</prompt>'
    assert {*read_as(text).values()} == {"exact"}
    scaffold = MODULES + '<scaffold modules="a c"/>'
    text = '<prompt schema="s"><a/><c/> end</prompt>'
    assert {*read_as(text, children=scaffold).values()} == {"exact"}
