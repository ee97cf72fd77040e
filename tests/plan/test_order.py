"""Imports that commute are put into the order that earlier prompts have used."""

from __future__ import annotations

from tests.plan.planning import Prompts

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


def test_a_prompt_follows_the_longest_known_beginning() -> None:
    prompts = Prompts(DOCUMENTS, COMPACT)
    assert imported(prompts, "<b/><a/> x") == "ba"
    assert imported(prompts, "<a/><b/> x") == "ba"
    assert imported(prompts, "<c/><a/><b/> x") == "bac"
    assert imported(prompts, "<a/><c/><d/> x") == "acd"
    assert imported(prompts, "<d/><c/><a/><b/> x") == "bacd"


def test_exact_prompts_share_what_they_begin_with() -> None:
    prompts = Prompts(DOCUMENTS, COMPACT + ' encode="exact"')
    first, second = (prompts.plan(f"{p} x") for p in ("<a/><b/><c/>", "<c/><d/><b/><a/>"))
    keys = [[m.layout.key for m in plan.modules] for plan in (first, second)]
    assert keys[0] == keys[1][:4]


def test_the_order_stays_where_it_is_not_free() -> None:
    prompts = Prompts(DOCUMENTS, 'layout="compact"')
    assert imported(prompts, "<b/><a/> x") == "ba"
    assert imported(prompts, "<a/><b/> x") == "ab"


def test_imports_behind_text_stay_there() -> None:
    prompts = Prompts(DOCUMENTS, COMPACT)
    assert imported(prompts, "<b/><a/> x") == "ba"
    assert imported(prompts, "<c/> x <a/><b/> x") == "cab"


def test_imports_with_arguments_come_behind_the_others() -> None:
    prompts = Prompts(DOCUMENTS + WITH_ARGUMENT, COMPACT)
    assert imported(prompts, '<p x="y"/><a/><b/> x') == "abp"


def test_an_order_is_known_of_its_own_schema_and_tenant() -> None:
    prompts = Prompts(DOCUMENTS, COMPACT + ' private="true"')

    def order(children: str, salt: str) -> list[str]:
        text = f'<prompt schema="s">{children} x</prompt>'
        plan = prompts.planner.plan(text, salt=salt)
        return [m.layout.path for m in plan.modules]

    assert order("<b/><a/>", "one") == ["", "b", "a"]
    assert order("<a/><b/>", "two") == ["", "a", "b"]
    assert order("<a/><b/>", "one") == ["", "b", "a"]


def test_a_module_that_is_imported_twice_is_refused_as_always() -> None:
    prompts = Prompts(DOCUMENTS, COMPACT)
    assert prompts.refused("<a/><b/><a/> x").message == "`a` is imported twice"


def test_many_imports_take_no_long_search() -> None:
    names = [f"m{number}" for number in range(12)]
    prompts = Prompts("".join(f'<module name="{name}">w</module>' for name in names), COMPACT)
    for shift in range(12):
        rotated = names[shift:] + names[:shift]
        prompts.plan("".join(f"<{name}/>" for name in rotated) + " x")
        prompts.plan("".join(f"<{name}/>" for name in reversed(rotated)) + " x")
