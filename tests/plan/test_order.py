"""Imports that commute are put into the order of their schema."""

from __future__ import annotations

import pytest

from tests.plan.planning import PaperPrompts as Prompts
from vllm_promptcache.layout import ModuleLayout
from vllm_promptcache.plan.names import Names
from vllm_promptcache.pml import Import

DOCUMENTS = "r1 r2 r3 r4 " + "".join(
    f'<module name="{name}">{name}1 {name}2 {name}3 {name}4</module>' for name in "abcde"
)
WITH_ARGUMENT = '<module name="p">p1 <param name="x" len="2"/> p2</module>'
COMPACT = 'layout="compact" order="any"'


def imported(prompts: Prompts, children: str) -> str:
    """Names of the documents in the order of their positions."""
    plan = prompts.plan(children)
    placed = sorted(plan.modules, key=lambda planned: planned.layout.start)
    return "".join(planned.layout.path for planned in placed)


@pytest.mark.parametrize("children", ["<a/><b/><d/>", "<d/><a/><b/>", "<b/><d/><a/>"])
def test_imports_have_the_order_of_the_schema(children: str) -> None:
    assert imported(Prompts(DOCUMENTS, COMPACT), children + " x") == "abd"


def test_the_order_depends_on_no_earlier_prompt() -> None:
    """Every API server plans a prompt alike, whatever it has planned before."""
    text = '<prompt schema="s"><c/><a/><b/> x</prompt>'
    one, other = Prompts(DOCUMENTS, COMPACT), Prompts(DOCUMENTS, COMPACT)
    for children in ("<b/><a/>", "<c/><b/>", "<d/><c/><b/><a/>"):
        one.plan(f"{children} x")
    plans = [prompts.planner.plan(text) for prompts in (one, other)]
    assert plans[0].sequence == plans[1].sequence


def test_exact_prompts_share_what_they_begin_with() -> None:
    prompts = Prompts(DOCUMENTS, COMPACT + ' encode="exact"')
    first, second = (prompts.plan(f"{p} x") for p in ("<b/><c/><a/>", "<c/><d/><b/><a/>"))
    keys = [[m.layout.key for m in plan.modules] for plan in (first, second)]
    assert keys[0] == keys[1][:4]


def test_the_order_stays_where_it_is_not_free() -> None:
    prompts = Prompts(DOCUMENTS, 'layout="compact"')
    assert imported(prompts, "<b/><a/> x") == "ba"
    assert imported(prompts, "<a/><b/> x") == "ab"


def test_imports_behind_text_stay_there() -> None:
    prompts = Prompts(DOCUMENTS, COMPACT)
    assert imported(prompts, "<c/> x <b/><a/> x") == "cba"
    assert imported(prompts, "x <c/><b/> x") == "cb"


def test_imports_with_arguments_come_behind_the_others() -> None:
    prompts = Prompts(DOCUMENTS + WITH_ARGUMENT, COMPACT)
    assert imported(prompts, '<p x="y"/><b/><a/> x') == "abp"
    assert imported(prompts, "<b/><a>text</a><c/> x") == "bca"


def test_a_nested_module_is_where_it_is_nested() -> None:
    outer = '<module name="o">o1 <module name="i">i1 i2 i3 i4</module></module>'
    prompts = Prompts(outer + DOCUMENTS, COMPACT)
    assert imported(prompts, "<b/><i/> x") == "oo/ib"


def test_imports_behind_text_may_come_back_to_a_module() -> None:
    inner = '<module name="i">i1 i2 i3 i4</module><module name="j">j1 j2 j3 j4</module>'
    children = f'<module name="o">o1 {inner}</module>' + DOCUMENTS
    prompt = "<i/> x <b/> y <j/> z"
    assert imported(Prompts(children, COMPACT), prompt) == "oo/io/jb"
    error = Prompts(children, 'layout="compact"').refused(prompt)
    assert error.message == "`b` stands between `o` and `o/j`, which lies within it"


def test_an_unknown_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of unknown imports were put in order, under a lock, before one was looked up."""
    looked_up: list[str] = []
    find = Names.find

    def watch(names: Names, element: Import, scope: ModuleLayout) -> ModuleLayout:
        looked_up.append(element.name)
        return find(names, element, scope)

    monkeypatch.setattr(Names, "find", watch)
    prompts = Prompts(DOCUMENTS, COMPACT)
    error = prompts.refused("<a/>" + "".join(f"<u{i}/>" for i in range(500)))
    assert error.message == "there is no module `u0` in schema `s`"
    assert looked_up == ["a", "u0"]


def test_a_module_that_is_imported_twice_is_refused_as_always() -> None:
    prompts = Prompts(DOCUMENTS, COMPACT)
    assert prompts.refused("<a/><b/><a/> x").message == "`a` is imported twice"
