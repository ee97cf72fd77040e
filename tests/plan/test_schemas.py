"""The front end's registry of schemas."""

from __future__ import annotations

import pytest

from tests.layout.templates import CHATML
from tests.layout.word_tokenizer import WordTokenizer
from tests.plan.planning import make_planner
from vllm_promptcache.config import PromptModulesConfig
from vllm_promptcache.errors import NotFoundError, PMLError
from vllm_promptcache.plan.schemas import Schemas
from vllm_promptcache.pml import Schema, parse_schema


def schema(text: str = "one", name: str = "travel", attributes: str = "") -> Schema:
    return parse_schema(f'<schema name="{name}" {attributes}>{text}</schema>')


@pytest.fixture
def schemas() -> Schemas:
    return make_planner(WordTokenizer(CHATML), max_model_len=10, block_size=4).schemas


def test_the_very_same_schema_is_kept(schemas: Schemas) -> None:
    layout = schemas.add(schema())
    assert schemas.add(schema()) is layout
    assert schemas.layouts == {"travel": layout}


def test_another_schema_of_the_same_name_replaces_it(schemas: Schemas) -> None:
    first = schemas.add(schema())
    second = schemas.add(schema("one two"))
    assert schemas.layouts == {"travel": second}
    assert (first.num_tokens, second.num_tokens) == (1, 2)
    assert (schemas.serves(first), schemas.serves(second)) == (False, True)


def test_a_schema_that_is_refused_leaves_the_old_one(schemas: Schemas) -> None:
    layout = schemas.add(schema())
    with pytest.raises(PMLError, match="the schema has 11 positions, more than the model's 10"):
        schemas.add(schema("one " * 11))
    assert schemas.get("travel").layout is layout


def test_a_removed_schema_is_gone() -> None:
    removed: list[str] = []
    schemas = make_planner(
        WordTokenizer(), max_model_len=10, block_size=4, on_remove=removed.append
    ).schemas
    schemas.add(schema())
    schemas.remove("travel")
    assert (list(schemas.names), removed) == ([], ["travel"])
    assert schemas.find("travel") is None
    with pytest.raises(NotFoundError, match="none has been added"):
        schemas.get("travel")


@pytest.mark.parametrize("call", [Schemas.get, Schemas.remove])
def test_an_unknown_schema(schemas: Schemas, call: object) -> None:
    schemas.add(schema())
    with pytest.raises(NotFoundError) as caught:
        call(schemas, "travl")  # type: ignore[operator]
    assert caught.value.message == "there is no schema `travl`"
    assert caught.value.hint == "did you mean `travel`?"


def test_options_are_those_of_schemas_that_say_nothing() -> None:
    text = "one <module name='a'>two</module>"
    options = PromptModulesConfig(encode="anchored", repair="head:1")
    made = make_planner(WordTokenizer(), options, max_model_len=10, block_size=4).schemas
    layout = made.add(schema(text, attributes='private="true"'))
    assert layout.private
    assert str(layout.modules[1].policy) == "anchored+head:1"
    public = made.add(schema(text, name="public", attributes='encode="isolated" repair="none"'))
    assert str(public.modules[1].policy) == "isolated"
    assert public.modules[1].key != layout.modules[1].key
