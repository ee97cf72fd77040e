"""The front end's registry of schemas."""

from __future__ import annotations

import pytest

from tests.layout.templates import CHATML
from tests.layout.word_tokenizer import WordTokenizer
from vllm_promptcache.errors import ClientError, PMLError
from vllm_promptcache.plan import Planner
from vllm_promptcache.pml import Limits, Schema, parse_schema
from vllm_promptcache.policies import Policy


def schema(text: str = "one", name: str = "travel", attributes: str = "") -> Schema:
    return parse_schema(f'<schema name="{name}" {attributes}>{text}</schema>')


@pytest.fixture
def planner() -> Planner:
    return Planner(WordTokenizer(CHATML), max_model_len=10, block_size=4)


def test_the_very_same_schema_is_kept(planner: Planner) -> None:
    layout = planner.add_schema(schema())
    assert planner.add_schema(schema()) is layout
    assert planner.schemas == {"travel": layout}


def test_another_schema_of_the_same_name_replaces_it(planner: Planner) -> None:
    first = planner.add_schema(schema())
    second = planner.add_schema(schema("one two"))
    assert planner.schemas == {"travel": second}
    assert first.num_tokens == 1
    assert planner.plan("<prompt schema='travel'>x</prompt>").next_position == 3


def test_a_schema_that_is_refused_leaves_the_old_one(planner: Planner) -> None:
    layout = planner.add_schema(schema())
    with pytest.raises(PMLError, match="the schema has 11 positions, more than the model's 10"):
        planner.add_schema(schema("one " * 11))
    assert planner.schemas["travel"] is layout


def test_a_removed_schema_is_gone(planner: Planner) -> None:
    planner.add_schema(schema())
    planner.remove_schema("travel")
    assert planner.schemas == {}
    with pytest.raises(PMLError, match="none has been added"):
        planner.plan("<prompt schema='travel'>x</prompt>")


@pytest.mark.parametrize("call", [Planner.remove_schema, Planner.warm_plans])
def test_an_unknown_schema(planner: Planner, call: object) -> None:
    planner.add_schema(schema())
    with pytest.raises(ClientError) as caught:
        call(planner, "travl")  # type: ignore[operator]
    assert caught.value.message == "there is no schema `travl`"
    assert caught.value.hint == "did you mean `travel`?"


def test_a_prompt_for_an_unknown_schema(planner: Planner) -> None:
    for number in range(10):
        planner.add_schema(schema(name=f"travel{number}"))
    with pytest.raises(PMLError) as caught:
        planner.plan("\n<prompt schema='other'>x</prompt>")
    assert (caught.value.line, caught.value.column) == (2, 1)
    assert caught.value.message == "there is no schema `other`"
    names = ", ".join(f"`travel{number}`" for number in range(8))
    assert caught.value.hint == f"known are {names}, ..."


def test_options_reach_the_compiler_and_the_parser() -> None:
    planner = Planner(
        WordTokenizer(),
        max_model_len=10,
        block_size=4,
        default_policy=Policy("anchored"),
        limits=Limits(max_document_bytes=40),
    )
    text = "one <module name='a'>two</module>"
    layout = planner.add_schema(schema(text, attributes='private="true"'))
    assert layout.private
    assert layout.modules[1].policy == Policy("anchored")
    public = planner.add_schema(schema(text, name="public"))
    assert public.modules[1].key != layout.modules[1].key
    with pytest.raises(PMLError, match="more than 40"):
        planner.plan(f"<prompt schema='travel'>{'x' * 20}</prompt>")


def test_a_private_schema_is_planned_with_the_salt_of_a_tenant(planner: Planner) -> None:
    planner.add_schema(schema("<module name='a'>one two</module>", attributes='private="true"'))
    text = "<prompt schema='travel'><a/> three</prompt>"
    with pytest.raises(PMLError, match="is private: a request must have a salt"):
        planner.plan(text)
    with pytest.raises(ClientError, match="is private"):
        planner.warm_plans("travel")
    keys = [planner.plan(text, salt=salt).modules[-1].layout.key for salt in ("x", "y", "x")]
    assert keys[0] == keys[2] != keys[1]
    (warm,) = planner.warm_plans("travel", salt="x")
    assert warm.sequence.spans[0].key == keys[0]
