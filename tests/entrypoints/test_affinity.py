"""Which data-parallel rank a request goes to."""

from __future__ import annotations

from tests.layout.templates import CHATML
from tests.layout.word_tokenizer import WordTokenizer
from tests.plan.planning import make_planner
from vllm_promptcache.entrypoints.affinity import ModuleAffinity, group_name
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.sequence.spans import ModuleSpan


def spans(*names: str, num_tokens: int = 10) -> list[ModuleSpan]:
    runs = (Run(0, num_tokens),)
    return [ModuleSpan(name.encode().ljust(32), num_tokens, runs) for name in names]


def test_a_request_follows_its_modules() -> None:
    ranks = ModuleAffinity(busy_margin=8)
    first = ranks.choose(spans("a", "b"), [0, 0])
    assert ranks.choose(spans("b", "c"), [8, 0] if first == 0 else [0, 8]) == first


def test_a_busy_rank_is_passed_over_and_both_hold_the_module_then() -> None:
    ranks = ModuleAffinity(busy_margin=8)
    first = ranks.choose(spans("a"), [0, 0])
    loads = [9, 0] if first == 0 else [0, 9]
    assert ranks.choose(spans("a"), loads) == 1 - first
    assert ranks.choose(spans("a"), loads[::-1]) == first


def test_the_rank_with_most_tokens_wins() -> None:
    ranks = ModuleAffinity()
    first = ranks.choose(spans("small", num_tokens=3), [0, 0])
    other = [100, 0] if first == 0 else [0, 100]
    assert ranks.choose(spans("large", num_tokens=90), other) == 1 - first
    both = spans("small", num_tokens=3) + spans("large", num_tokens=90)
    assert ranks.choose(both, [0, 0]) == 1 - first


def test_front_ends_agree_on_new_schemas_and_spread_them() -> None:
    names = [f"schema-{number}" for number in range(100)]
    one, two = ModuleAffinity(), ModuleAffinity()
    chosen = [one.choose(spans(f"{name}/a"), [0, 0], name) for name in names]
    # Their first prompts import different modules.
    assert chosen == [two.choose(spans(f"{name}/b"), [0, 0], name) for name in names]
    assert 25 < sum(chosen) < 75


def test_prompts_without_a_schema_go_where_their_longest_module_went() -> None:
    planner = make_planner(WordTokenizer(CHATML), max_model_len=2000, block_size=4)

    def name(children: str) -> str:
        return group_name(planner.plan(f"<prompt>{children}</prompt>").request)

    long, short = "<module>a b c d e</module>", "<module>f g</module>"
    assert name(f"{long} x") == name(f"y {short}{long} z")
    assert name(f"{long} x") != name(f"{short} x")
