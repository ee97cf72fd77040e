"""Which modules of a prompt stand first, what is read of them, and what equals a plain prefill."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest

from tests.generators import CaseMaker
from tests.layout.compiling import positions
from tests.layout.templates import CHATML
from tests.layout.word_tokenizer import WordTokenizer
from tests.plan.planning import PaperPrompts, Prompts, make_planner
from vllm_promptcache.config import PromptModulesConfig
from vllm_promptcache.errors import ClientError
from vllm_promptcache.layout.primer_tokens import PrimerTokens
from vllm_promptcache.plan import Explanation, PromptPlan
from vllm_promptcache.pml import parse_schema
from vllm_promptcache.sequence.codec import unpack_plan

FLAT = """r1 r2 <module name="a">a1 a2 a3 a4 a5 a6 a7</module>
    <module name="b">b1 b2 b3</module><module name="c">c1 <param name="p" len="2"/> c2</module>
    <module name="d" cache="false">d1</module>"""
# With a block for each of the first two modules.
LONG = FLAT.replace("b1 b2 b3", "b1 b2 b3 b4")
NESTED = """r1 r2 <module name="o">o1 o2 o3</module>
    <module name="a">a1 <module name="b">b1</module><module name="c">c1</module> a2</module>
    <module name="e"><param name="q" len="1"/> e1 <module name="f">f1</module></module>"""
COMPACT = 'encode="primed" layout="compact"'
FREE = f'{COMPACT} order="any"'
# Two sentences of a token each.
PRIMER = PrimerTokens.of([[1], [1]])


def prompts_of(children: str, attributes: str = 'encode="primed"', **options: bool) -> Prompts:
    """Plans prompts of a schema with a short primer; repairs nothing."""
    made = PaperPrompts("other", **options)
    made.planner.schemas.compiler.tokenizer.primer = PRIMER
    schema = parse_schema(f'<schema name="s" {attributes}>{children}</schema>')
    made.layout = made.planner.schemas.add(schema)
    return made


def firsts(prompts: Prompts, plan: PromptPlan) -> list[str]:
    """Paths of the modules whose variants a prompt reads."""
    keys = {module.key for module in prompts.layout.firsts}
    return [m.layout.path for m in plan.modules if m.reused and m.layout.key in keys]


def policies(plan: PromptPlan) -> dict[str, str]:
    """What is said of the modules that a prompt reads."""
    return {m.path: m.policy for m in Explanation.of(plan).modules if any(m.reused)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<b/><c p='x'/> end", ["b"]),
        ("<c p='x'/> end", ["c"]),
        # In a fixed layout the schema decides what is before what.
        ("<c p='x'/><b/> end", ["b"]),
        # It has no variant: there is no room for a primer before it.
        ("<a/><b/> end", []),
        ("new text <b/> end", []),
        ("<d/><c p='x'/> end", ["c"]),
        ("end", []),
    ],
)
def test_the_first_module_is_read_as_its_variant(text: str, expected: list[str]) -> None:
    prompts = prompts_of(FLAT)
    assert firsts(prompts, prompts.plan(text)) == expected


@pytest.mark.parametrize("attributes", [COMPACT, FREE])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<a/><b/> end", ["a"]),
        ("<b/><c p='x'/> end", ["b"]),
        ("<d/><b/> end", []),
        ("new text <b/> end", []),
    ],
)
def test_in_a_compact_schema_it_is_never_moved(
    attributes: str, text: str, expected: list[str]
) -> None:
    prompts = prompts_of(FLAT, attributes)
    plan = prompts.plan(text)
    if "order" in attributes and "<d/>" in text:
        # Sorted by the schema, so that `b` comes first.
        expected = ["b"]
    assert firsts(prompts, plan) == expected
    moved = {relocation.origin for relocation in plan.request.relocations}
    assert not moved & {module.key for module in prompts.layout.firsts}


def test_in_a_compact_schema_it_moves_where_an_empty_argument_leaves_a_gap() -> None:
    children = "r <module name='p'><param name='q' len='3'/></module><module name='a'>a1</module>"
    prompts = prompts_of(children, COMPACT)
    plan = prompts.plan("<p q=''/><a/> end")
    (variant,) = (m for m in prompts.layout.firsts if m.path == "a")
    (moved,) = plan.request.relocations
    assert (moved.origin, moved.shift) == (variant.key, 3)
    assert plan.request.spans[1].key == moved.key
    assert policies(plan) == {"": "exact", "a": "anchored"}


@pytest.mark.parametrize("attributes", ['encode="primed"', COMPACT])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<a/> end", ["a"]),
        ("<b/> end", ["a", "a/b"]),
        ("<b/><c/> end", ["a", "a/b"]),
        ("<c/> end", ["a", "a/c"]),
        ("<a>text <b/></a> end", ["a"]),
        # The argument comes before the text around `f`, and without one its placeholder.
        ("<e q='x'><f/></e> end", []),
        ("<e q=''><f/></e> end", ["e", "e/f"]),
    ],
)
def test_nested_modules_stand_first_in_those_that_do(
    attributes: str, text: str, expected: list[str]
) -> None:
    prompts = prompts_of(NESTED, attributes)
    assert firsts(prompts, prompts.plan(text)) == expected


def test_exact_is_what_sees_all_that_is_before_it() -> None:
    prompts = prompts_of(FLAT)
    assert policies(prompts.plan("<a/><b/> end")) == {"": "exact", "a": "exact", "b": "primed"}
    assert policies(prompts.plan("<b/> end")) == {"": "exact", "b": "exact"}
    # What is behind the placeholder has seen it in place of the argument.
    assert policies(prompts.plan("<c p='x'/> end")) == {"": "exact", "c": "anchored"}
    nested = prompts_of(NESTED)
    assert policies(nested.plan("<a/> end")) == {"": "exact", "a": "exact"}
    assert policies(nested.plan("<b/><c/> end")) == {
        "": "exact",
        "a": "anchored",
        "a/b": "exact",
        "a/c": "primed",
    }


def test_what_is_said_to_be_exact_has_seen_all_that_is_before_it() -> None:
    """Random prompts; what each token has seen is counted one by one."""
    options = PromptModulesConfig(encode="primed", repair="none", promote_after=0)
    planner = make_planner(WordTokenizer(CHATML), options, max_model_len=4000, block_size=4)

    def explained(pml: str) -> dict[str, Any]:
        return Explanation.of(planner.plan(pml)).to_dict()

    maker = CaseMaker(11, explained, ClientError)
    found: Counter[tuple[str, bool]] = Counter()
    for number in range(60):
        schema = maker.schema(f"r{number}", lambda pml: planner.schemas.add(parse_schema(pml)))
        for _ in range(6):
            plan = planner.plan(maker.prompt(schema).pml)
            check_places(plan)
            explanation = Explanation.of(plan).to_dict()
            for index, module in enumerate(explanation["modules"]):
                if any(module["reused"]):
                    found[module["policy"], has_seen_all(explanation, index)] += 1
    assert found["exact", True] > 300
    # Links of a scaffold have a name of their own.
    assert {policy for policy, is_exact in found if is_exact} <= {"exact", "scaffold"}
    assert not found["exact", False]


def check_places(plan: PromptPlan) -> None:
    """What is read of a module is where it was encoded, or is moved there."""
    for planned in plan.modules:
        module = planned.layout
        if planned.reused:
            encoded = positions(module.encoded_runs)[positions(module.kept_runs)[0]]
            shift = module.relocation.shift if module.relocation else 0
            assert module.kept_position_runs[0].start == encoded + shift


def has_seen_all(explanation: dict[str, Any], index: int) -> bool:
    """Whether the tokens that a prompt reads of a module have seen all before them, and that only.

    They themselves, and each token that they have seen.
    """
    modules = explanation["modules"]
    parts = [
        *([p for p, r in zip(m["position_ids"], m["reused"], strict=True) if r] for m in modules),
        *(part["position_ids"] for part in explanation["new"]),
    ]
    prompt = {position for part in parts for position in part}

    @cache
    def is_exact(index: int, number: int) -> bool:
        module = modules[index]
        position, own = module["position_ids"][number], range(number)
        behind = [(i, n) for i, length in module["context"] for n in kept(i)[:length]]
        behind += [(index, n) for n in own]
        seen = {modules[i]["encoded_position_ids"][n] for i, n in behind}
        is_in_place = module["encoded_position_ids"][number] == position
        return (
            is_in_place
            and position in prompt
            and all(any(modules[i]["reused"]) and modules[i]["kept"][n] for i, n in behind)
            and seen == {other for other in prompt if other < position}
            and all(is_exact(i, n) for i, n in behind)
        )

    def kept(index: int) -> list[int]:
        return [n for n, is_kept in enumerate(modules[index]["kept"]) if is_kept]

    return all(is_exact(index, n) for n, is_read in enumerate(modules[index]["reused"]) if is_read)


def test_a_variant_is_packed_with_what_it_is_encoded_behind() -> None:
    prompts = prompts_of(NESTED)
    plan = prompts.plan("<b/><c/> end")
    packed = unpack_plan(plan.packed, num_prompt_tokens=plan.num_tokens)
    layout = prompts.layout
    outer, inner = layout.at(layout.modules[2].first), layout.at(layout.modules[3].first)
    assert [span.key for span in packed.spans] == [
        layout.root.key,
        outer.key,
        inner.key,
        layout.modules[4].key,
    ]
    for module in (outer, inner, *layout.modules[2:3], layout.modules[4]):
        spec = plan.module_prompt.spec(module.key)
        assert spec.token_ids == module.token_ids
        behind = [layout.at(span.index).key for span in module.context]
        assert [span.key for span in spec.sequence.spans] == behind


def test_the_first_module_is_never_repaired() -> None:
    prompts = prompts_of(FLAT, 'encode="primed" repair="head:2"')
    plan = prompts.plan("<b/><c p='x'/> end")
    assert [(t.owner, t.start) for t in plan.new if t.kind == "repeated"] == [("c", 12), ("c", 15)]


def test_what_is_exact_as_it_is_need_not_be_promoted() -> None:
    prompts = prompts_of(LONG, promotes=True)
    assert prompts.plan("<a/> end").chain is None
    assert prompts.plan("<b/> end").chain is None
    assert prompts.plan("<a/><b/> end").chain is not None


@pytest.mark.parametrize(
    ("text", "num_links", "num_exact"),
    [
        ("<a/><b/> end", 2, 1),
        ("<b/><a/><c p='x'/> end", 2, 1),
    ],
)
def test_links_of_what_is_exact_without_them_are_counted(
    text: str, num_links: int, num_exact: int
) -> None:
    request = prompts_of(LONG, promotes=True).plan(text).request
    assert len(request.links) == num_links
    assert request.num_exact_links == num_exact


def test_warming_encodes_what_most_prompts_read() -> None:
    prompts = prompts_of(FLAT)
    spans = {span.key for plan in prompts.planner.warm_plans("s") for span in plan.request.spans}
    assert spans == {module.key for module in prompts.layout.modules if module.is_reusable}
