"""Which schema a prompt is planned for, and how."""

from __future__ import annotations

import pytest

from tests.layout.templates import CHATML
from tests.layout.word_tokenizer import WordTokenizer
from tests.plan.planning import PAPER, make_planner
from vllm_promptcache.errors import ClientError, NotFoundError, PMLError
from vllm_promptcache.plan import Planner
from vllm_promptcache.pml import Limits, Schema, parse_prompt, parse_schema


def schema(text: str = "one", name: str = "travel", attributes: str = "") -> Schema:
    return parse_schema(f'<schema name="{name}" {attributes}>{text}</schema>')


@pytest.fixture
def planner() -> Planner:
    return make_planner(WordTokenizer(CHATML), PAPER, max_model_len=10, block_size=4)


def test_a_prompt_is_planned_for_the_schema_as_it_is(planner: Planner) -> None:
    planner.schemas.add(schema())
    planner.schemas.add(schema("one two"))
    text = "<prompt schema='travel'>x</prompt>"
    assert planner.plan(text).next_position == 3
    assert planner.plan(parse_prompt(text)) == planner.plan(text)
    planner.schemas.remove("travel")
    with pytest.raises(PMLError, match="none has been added"):
        planner.plan(text)


def test_a_prompt_for_an_unknown_schema(planner: Planner) -> None:
    for number in range(10):
        planner.schemas.add(schema(name=f"travel{number}"))
    with pytest.raises(PMLError) as caught:
        planner.plan("\n<prompt schema='other'>x</prompt>")
    assert (caught.value.line, caught.value.column) == (2, 1)
    assert caught.value.message == "there is no schema `other`"
    names = ", ".join(f"`travel{number}`" for number in range(8))
    assert caught.value.hint == f"known are {names}, ..."
    with pytest.raises(NotFoundError, match="there is no schema `other`"):
        planner.warm_plans("other")


def test_limits_reach_the_parser() -> None:
    limits = Limits(max_document_bytes=40)
    planner = make_planner(WordTokenizer(), max_model_len=10, block_size=4, limits=limits)
    with pytest.raises(PMLError, match="more than 40"):
        planner.plan(f"<prompt schema='travel'>{'x' * 20}</prompt>")


def test_a_private_schema_is_planned_with_the_salt_of_a_tenant(planner: Planner) -> None:
    planner.schemas.add(schema("<module name='a'>one two</module>", attributes='private="true"'))
    text = "<prompt schema='travel'><a/> three</prompt>"
    with pytest.raises(PMLError, match="is private: a request must have a salt"):
        planner.plan(text)
    with pytest.raises(ClientError, match="is private"):
        planner.warm_plans("travel")
    keys = [planner.plan(text, salt=salt).modules[-1].layout.key for salt in ("x", "y", "x")]
    assert keys[0] == keys[2] != keys[1]
    (warm,) = planner.warm_plans("travel", salt="x")
    assert warm.sequence.spans[0].key == keys[0]
