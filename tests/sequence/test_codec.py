"""Plans that contradict themselves or their prompts are refused."""

from __future__ import annotations

import msgspec
import pytest

from tests.core.plans import module, packed, placed, plan, span
from vllm_promptcache.errors import PlanError
from vllm_promptcache.sequence.codec import (
    PackedModule,
    Plan,
    Recipe,
    pack_plan,
    pack_recipe,
    unpack_plan,
    unpack_recipe,
)
from vllm_promptcache.sequence.prompt import ModulePrompt
from vllm_promptcache.sequence.runs import Run, count
from vllm_promptcache.sequence.spans import Relocation, SequencePlan

A, B = module("a", 9), module("b", 6)
SPANS = tuple(placed([span(A), span(B)]))
PLAN = plan(SPANS, [A, B], (Run(15, 2),))
NOWHERE = msgspec.structs.replace(SPANS[0], positions=(Run(100, 9),))


def unpacked(**changes: object) -> Plan:
    changed = msgspec.structs.replace(PLAN, **changes)
    found = unpack_plan(pack_plan(changed), num_prompt_tokens=count(changed.positions))
    assert found.sequence.num_tokens == count(found.positions)
    assert not found.links or found.promoted.spans == found.links
    return found


def test_a_plan_arrives_as_it_was_sent() -> None:
    assert unpacked() == PLAN
    assert PLAN.sequence == SequencePlan(SPANS, (Run(15, 2),))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": (Run(0, 15),)}, "no token is to be computed"),
        ({"positions": (Run(0, 9), Run(9, 0))}, "ascending"),
        ({"positions": (Run(5, 9), Run(0, 5))}, "ascending"),
        ({"positions": (Run(2, 16),)}, "overlap"),
        ({"spans": (SPANS[0], SPANS[0])}, "overlap"),
        ({"spans": (NOWHERE,)}, "overlap"),
        ({"spans": (NOWHERE,), "positions": (Run(0, 3), Run(100, 9))}, "no new token is the last"),
        ({"spans": (span(A),)}, "lack places"),
        ({"spans": (msgspec.structs.replace(SPANS[0], runs=(Run(0, 10),)),)}, "longer than"),
        ({"spans": (msgspec.structs.replace(SPANS[0], runs=()),)}, "bad module span"),
        ({"spans": (msgspec.structs.replace(SPANS[0], key=b"short"),)}, "bad module span"),
        ({"modules": (packed(A),)}, "a module is missing"),
        ({"relocations": (Relocation(b"m" * 32, b"o" * 32, 3),)}, "origin"),
        ({"siblings": b"odd"}, "siblings"),
        ({"attended": (1,)}, "repaired span"),
        ({"attended": (1, 7)}, "bad repaired tokens"),
        ({"links": (SPANS[0], SPANS[0])}, "overlap"),
        (
            {
                "positions": (Run(0, 9), Run(20, 1), Run(22, 1)),
                "spans": (SPANS[0],),
                "links": (msgspec.structs.replace(SPANS[0], positions=(Run(14, 9),)),),
            },
            "overlap",
        ),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        unpacked(**changes)


def test_a_plan_for_another_prompt_is_refused() -> None:
    with pytest.raises(PlanError, match="lays out 17 tokens, the prompt has 16"):
        unpack_plan(pack_plan(PLAN), num_prompt_tokens=16)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(A.sequence, A.kept_runs, (1, 2)), "lack positions"),
        (Recipe(A.sequence, (), A.token_ids), "bad kept tokens"),
        (Recipe(A.sequence, (Run(0, 10),), A.token_ids), "bad kept tokens"),
        (Recipe(A.sequence, (Run(4, 2), Run(0, 2)), A.token_ids), "ascending"),
    ],
)
def test_bad_recipes_are_refused(recipe: Recipe, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        unpack_recipe(pack_recipe(recipe))


def test_tokens_that_the_prompt_has_do_not_travel_twice() -> None:
    """Own tokens 0 to 8, of which 2, 3 and 8 are placeholders; the others are in the prompt."""
    kept = (Run(0, 2), Run(4, 4))
    recipe = Recipe(SequencePlan((), (Run(0, 9),)), kept, (102, 103, 108))
    sent = PackedModule(A.key, 9, pack_recipe(recipe))
    one = msgspec.structs.replace(span(module("a", 6)), positions=(Run(0, 2), Run(4, 4)))
    found = Plan("schema", (Run(0, 8), Run(9, 1)), (one,), (sent,))
    prompt = ModulePrompt.of(found, [10, 11, 12, 13, 14, 15, 16, 17, 19])
    assert prompt.spec(A.key).token_ids == (10, 11, 102, 103, 14, 15, 16, 17, 108)
    lacking = msgspec.structs.replace(one, positions=(Run(0, 2), Run(5, 4)))
    for spans in ((lacking,), ()):
        found = Plan("schema", (Run(0, 8), Run(9, 1)), spans, (sent,))
        with pytest.raises(PlanError, match="tokens are missing"):
            ModulePrompt.of(found, [7] * 9).spec(A.key)


def test_a_link_is_encoded_behind_all_before_it() -> None:
    links = tuple(placed([span(A), span(B)]))
    found = msgspec.structs.replace(PLAN, spans=links, links=links)
    spec = ModulePrompt.of(found, list(range(100, 117))).spec(B.key)
    assert [one.key for one in spec.sequence.spans] == [A.key]
    assert spec.sequence.position_runs == (Run(9, 6),)
    assert spec.token_ids == tuple(range(109, 115))
    assert spec.kept_runs == (Run(0, 6),)
