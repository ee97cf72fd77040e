"""Modules that are encoded behind each other: exact prompts and scaffolds."""

from __future__ import annotations

from tests.plan.planning import PaperPrompts as Prompts
from vllm_promptcache.plan import PromptPlan
from vllm_promptcache.plan.prompt_plan import baseline
from vllm_promptcache.sequence.runs import merge_runs

MODULES = """r1 r2 <module name="a">a1 a2 a3 a4 a5</module> r3
    <module name="b">b1 <param name="p" len="2"/> b2 b3 b4 b5 b6</module>
    <module name="c">c1 c2 c3 c4 c5</module>"""
SCAFFOLD = '<scaffold modules="a c"/>'


def links(prompts: Prompts, plan: PromptPlan) -> list[tuple[str, str]]:
    """Path and reused words of everything that a prompt reuses."""
    return [
        (m.layout.path, prompts.words.text(m.layout.kept_token_ids[r.start : r.end]))
        for m in plan.modules
        for r in merge_runs(m.reused)
    ]


def new(prompts: Prompts, plan: PromptPlan) -> str:
    return " ".join(prompts.words.text(tokens.token_ids) for tokens in plan.new)


def test_exact_modules_are_behind_all_before_them() -> None:
    prompts = Prompts(MODULES, 'encode="exact"')
    plan = prompts.plan("<a/><c/> end")
    assert links(prompts, plan) == [("a", "r1 r2 a1 a2 a3 a4 a5"), ("c", "r3 c1 c2 c3 c4 c5")]
    first, second = (m.layout for m in plan.modules)
    assert [span.num_tokens for span in second.context] == [7]
    assert (first.chain, second.chain) == ("exact", "exact")
    assert new(prompts, plan) == "end"


def test_an_exact_prompt_of_another_schema() -> None:
    prompts = Prompts(MODULES)
    plan = prompts.planner.plan('<prompt schema="s" encode="exact"><a/><c/> end</prompt>')
    exact = Prompts(MODULES, 'encode="exact"').plan("<a/><c/> end")
    assert [m.layout.key for m in plan.modules] == [m.layout.key for m in exact.modules]


def test_from_the_first_new_token_on_everything_is_computed() -> None:
    prompts = Prompts(MODULES, 'encode="exact"')
    plan = prompts.plan("<a/><b p='x'/><c/> end")
    assert links(prompts, plan) == [("a", "r1 r2 a1 a2 a3 a4 a5")]
    # Less than a block is left before the argument.
    assert new(prompts, plan) == "r3 b1 x b2 b3 b4 b5 b6 c1 c2 c3 c4 c5 end"


def test_the_last_token_of_an_exact_prompt_is_computed() -> None:
    prompts = Prompts(MODULES, 'encode="exact"')
    plan = prompts.plan("<a/>")
    assert links(prompts, plan) == [("a", "r1 r2 a1 a2 a3 a4 a5")]
    assert new(prompts, plan) == "r3"
    assert new(prompts, prompts.plan("<c/>")) == "c5"


def test_a_link_is_shared_by_prompts_that_begin_alike() -> None:
    prompts = Prompts(MODULES, 'encode="exact"')
    both, one, other = (prompts.plan(f"{p} end") for p in ("<a/><c/>", "<a/>", "<c/>"))
    assert both.modules[0].layout.key == one.modules[0].layout.key
    assert both.modules[1].layout.key not in {m.layout.key for m in other.modules}


def test_a_scaffold_is_used_as_a_whole_or_not_at_all() -> None:
    prompts = Prompts(MODULES + SCAFFOLD)
    plan = prompts.plan("<a/><b p='x'/><c/> end")
    assert links(prompts, plan) == [
        ("a", "r1 r2 a1 a2 a3 a4 a5"),
        ("c", "r3 c1 c2 c3 c4 c5"),
        ("b", "b1 b2 b3 b4 b5 b6"),
    ]
    assert [m.layout.chain for m in plan.modules] == ["scaffold", "scaffold", None]
    without = Prompts(MODULES)
    assert prompts.plan("<a/> end").sequence == without.plan("<a/> end").sequence


def test_scaffolds_of_compact_schemas_are_not_warmed() -> None:
    """They may be anywhere."""

    def num_plans(children: str, attributes: str) -> int:
        return len(list(Prompts(children, attributes).planner.warm_plans("s")))

    for attributes, num_scaffolds in (("", 1), ('layout="compact"', 0)):
        num_modules = num_plans(MODULES, attributes)
        assert num_plans(MODULES + SCAFFOLD, attributes) == num_modules + num_scaffolds


def test_a_prompt_of_nothing_but_a_scaffold_is_exact() -> None:
    prompts = Prompts(MODULES + '<scaffold modules="a b c"/>')
    plan = prompts.plan("<a/><b p='x'/> end")
    assert [m.layout.chain for m in plan.modules if m.reused] == [None] * 3
    plan = prompts.plan("<a/><b p='x'/><c/> end")
    assert {m.layout.chain for m in plan.modules} == {"exact"}
    assert (
        plan.packed
        == prompts.planner.plan(
            "<prompt schema='s' encode='exact'><a/><b p='x'/><c/> end</prompt>"
        ).packed
    )


def test_the_largest_scaffold_wins() -> None:
    small, large = '<scaffold modules="a c"/>', '<scaffold modules="a b c"/>'
    modules = MODULES + '<module name="d">d1 d2 d3 d4</module>' + small + large
    plan = Prompts(modules).plan("<a/><b p=''/><c/><d/> end")
    assert [m.layout.path for m in plan.modules if m.layout.chain == "scaffold"] == ["a", "b", "c"]


def test_anchored_modules_beside_a_scaffold_keep_their_context() -> None:
    prompts = Prompts(MODULES + SCAFFOLD, 'encode="anchored"')
    plan = prompts.plan("<a/><b p='x'/><c/> end")
    paths = [(m.layout.path, m.num_tokens) for m in plan.modules]
    assert paths == [("", 0), ("a", 7), ("c", 6), ("b", 6)]


def test_the_baseline_has_the_same_tokens() -> None:
    for attributes in ('encode="exact"', ""):
        prompts = Prompts(MODULES + SCAFFOLD, attributes)
        plan = prompts.plan("<a/><b p='x'/><c/> end")
        plain = baseline(plan)
        assert sorted(plain.prompt_token_ids) == sorted(plan.prompt_token_ids)
        text = prompts.words.text(plain.prompt_token_ids)
        assert text == "r1 r2 a1 a2 a3 a4 a5 r3 b1 x b2 b3 b4 b5 b6 c1 c2 c3 c4 c5 end"


def test_a_private_schema_shares_no_link() -> None:
    prompts = Prompts(MODULES, 'encode="exact" private="true"')
    text = '<prompt schema="s"><a/> end</prompt>'
    first, second = (prompts.planner.plan(text, salt=salt) for salt in ("one", "two"))
    keys = {m.layout.key for m in first.modules}
    assert keys
    assert keys.isdisjoint(m.layout.key for m in second.modules)


def test_scaffolds_are_warmed_and_exact_schemas_are_not() -> None:
    prompts = Prompts(MODULES + SCAFFOLD)
    warm = list(prompts.planner.warm_plans("s"))[-1]
    plan = prompts.plan("<a/><b p='x'/><c/> end")
    assert [s.key for s in warm.sequence.spans] == [s.key for s in plan.sequence.spans[:2]]
    assert not list(Prompts(MODULES, 'encode="exact"').planner.warm_plans("s"))


def test_a_prompt_of_nothing_but_modules_that_are_never_cached() -> None:
    prompts = Prompts('<module name="a" cache="false">a1 a2</module>', 'encode="exact"')
    plan = prompts.plan("<a/>")
    assert (plan.modules, new(prompts, plan)) == ((), "a1 a2")


def test_plans_of_many_modules_stay_small() -> None:
    num_modules = 1000
    modules = "".join(f'<module name="m{n}">1 2 3 4</module>' for n in range(num_modules))
    prompts = Prompts(modules, 'encode="exact"', max_model_len=10_000)

    def plan(number: int) -> PromptPlan:
        return prompts.plan("".join(f"<m{n}/>" for n in range(number)) + " end")

    all_of_them, most = plan(num_modules), plan(num_modules - 10)
    assert len(all_of_them.modules) < 100
    assert len(all_of_them.packed) < 400_000
    assert all_of_them.num_new_tokens < 0.1 * all_of_them.num_tokens
    keys = [[m.layout.key for m in plan.modules] for plan in (all_of_them, most)]
    assert keys[0][: len(keys[1])] == keys[1]
