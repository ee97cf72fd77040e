"""Positions of text between imports, against the rule carried out slowly."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import pytest

from tests.generators.schemas import append_text, choices_in
from tests.layout.compiling import Compiler
from tests.plan import slow_text_placement
from tests.plan.planning import Prompts
from tests.plan.work import num_calls
from vllm_promptcache.layout import SchemaLayout
from vllm_promptcache.layout.content import TextGroup
from vllm_promptcache.plan.resolve import resolve_prompt
from vllm_promptcache.plan.resolved import ResolvedPrompt
from vllm_promptcache.pml import parse_prompt

NUM_CASES = 400


def random_schema(rng: Random) -> Element:
    """Short modules, many without any text, nested and in unions."""
    root = Element("schema", name="s")
    names = iter(range(10_000))

    def fill(parent: Element, depth: int) -> None:
        for _ in range(rng.randint(1, 6 if depth else 12)):
            kind = rng.choice(("text", "module", "module", "union", "param"))
            if kind == "text":
                append_text(parent, " w" * rng.choice((1, 1, 2, 5)) + " ")
            elif kind == "param" and parent.tag == "module":
                SubElement(parent, "param", name=f"p{next(names)}", len=str(rng.randint(1, 3)))
            elif kind == "union" and depth < 4:
                union = SubElement(parent, "union")
                for _ in range(rng.randint(1, 3)):
                    fill_module(union, depth)
            elif depth < 4:
                fill_module(parent, depth)

    def fill_module(parent: Element, depth: int) -> None:
        module = SubElement(parent, "module", name=f"m{next(names)}")
        if rng.random() < 0.7:
            fill(module, depth + 1)

    fill(root, 0)
    return root


def random_prompt(rng: Random, schema: Element) -> str:
    """Imports in any order with much text between; some leave out what is around them."""
    prompt = Element("prompt", schema="s")
    likelihood = rng.choice((0.5, 0.9))

    def fill(element: Element, module: Element) -> None:
        chosen = [rng.choice(choice) for choice in choices_in(module) if rng.random() < likelihood]
        order = rng.choice(("as it is", "backwards", "any"))
        if order != "as it is":
            chosen.reverse()
        if order == "any":
            rng.shuffle(chosen)
        for child in chosen:
            maybe_text(element)
            inner = SubElement(element, child.attrib["name"])
            for param in child.iter("param"):
                if param in list(child):
                    inner.set(param.attrib["name"], "x")
            fill(inner, child)
            if len(inner) == 1 and not inner.attrib and not inner.text and not inner[0].tail:
                nested = inner[0]
                element.remove(inner)
                element.append(nested)
        maybe_text(element)

    def maybe_text(element: Element) -> None:
        if rng.random() < 0.6:
            append_text(element, " t ")

    fill(prompt, schema)
    append_text(prompt, " end")
    return ElementTree.tostring(prompt, encoding="unicode")


def random_case(seed: int) -> tuple[SchemaLayout, ResolvedPrompt, Callable[[TextGroup], int]]:
    """A schema, a prompt of it, and how long its texts are."""
    rng = Random(seed)
    schema, compiler = random_schema(rng), Compiler()
    text = ElementTree.tostring(schema, encoding="unicode")
    layout = compiler.compile(text[text.index(">") + 1 : text.rindex("<")])
    resolved = resolve_prompt(parse_prompt(random_prompt(rng, schema)), layout, compiler.tokenizer)
    lengths = {id(group): rng.choice((0, 1, 1, 2, 3, 4, 7, 20)) for group in resolved.inner}
    return layout, resolved, lambda group: lengths[id(group)]


def test_positions_are_those_of_the_rule() -> None:
    num_texts = num_moved = num_backwards = 0
    for seed in range(NUM_CASES):
        layout, resolved, num_tokens = random_case(seed)
        found, starts = resolved.placed(layout, num_tokens)
        expected, expected_starts = slow_text_placement.place_in_gaps(layout, resolved, num_tokens)
        assert starts == expected_starts, seed
        for one, other in zip(found.modules, expected.modules, strict=True):
            for name in other.__slots__:
                assert getattr(one, name) == getattr(other, name), (seed, name)
        num_texts += len(starts)
        num_moved += any(module.relocation for module in found.modules)
        num_backwards += starts != sorted(starts)
    # There is something to compare.
    assert num_texts > 4 * NUM_CASES
    assert num_moved > NUM_CASES / 3
    assert num_backwards > NUM_CASES / 5


@pytest.mark.parametrize("step", [1, -1])
def test_the_work_grows_with_the_text_alone(step: int) -> None:
    """Each text moved all that lies behind it; 1,000 took seconds, 2,000 half a minute."""

    def work(num_imports: int) -> int:
        names = [f"m{i}" for i in range(num_imports)]
        prompts = Prompts("".join(f'<module name="{name}">w</module>' for name in names))
        text = "".join(f"<{name}/>t" for name in names[::step])
        prompt = parse_prompt(f'<prompt schema="s">{text}</prompt>')
        tokenizer = prompts.planner.schemas.compiler.tokenizer
        resolved = resolve_prompt(prompt, prompts.layout, tokenizer)
        return num_calls(lambda: resolved.placed(prompts.layout, lambda _: 1))

    assert work(400) < 5 * work(100)
