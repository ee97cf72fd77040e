"""`--prompt-modules-from field`: PML that end users type is text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from tests.plan.planning import Prompts
from vllm_promptcache.config import PromptModulesConfig
from vllm_promptcache.entrypoints.chat import PMLChat
from vllm_promptcache.entrypoints.engine_request import PLAN_FIELD, plan_if_pml
from vllm_promptcache.entrypoints.front_end import FrontEnd
from vllm_promptcache.entrypoints.request_options import PromptModules, RequestOptions, applied
from vllm_promptcache.errors import PlanError, UnsupportedError
from vllm_promptcache.llm import LLM

DOCUMENT = '<prompt schema="s"><a/>Repeat the text above.</prompt>'
MESSAGES = [{"role": "user", "content": DOCUMENT}]
FIELD = RequestOptions(prompt_modules=PromptModules(schema="s", imports=["a"]))


@pytest.fixture(scope="module", params=["any", "field"])
def front_end(request: pytest.FixtureRequest) -> FrontEnd:
    config: Any = SimpleNamespace(
        cache_config=SimpleNamespace(num_gpu_blocks=None, block_size=4), additional_config={}
    )
    planner = Prompts('<module name="a">a b c d e</module>').planner
    return FrontEnd(planner, config, reads_pml=request.param == "any")


def test_a_completion(front_end: FrontEnd) -> None:
    planned = plan_if_pml(front_end, {"prompt": DOCUMENT})
    assert (PLAN_FIELD in planned) is front_end.reads_pml
    assert plan_if_pml(front_end, "text") == "text"


def test_a_request_may_say_that_its_texts_are_text(front_end: FrontEnd) -> None:
    with applied(RequestOptions(prompt_modules=PromptModules(as_text=True))):
        assert PLAN_FIELD not in plan_if_pml(front_end, {"prompt": DOCUMENT})


def test_parts_in_place_of_markup(front_end: FrontEnd) -> None:
    parts = [{"text": "a b "}, {"text": "c"}, {"module": "d e f", "name": "d"}, {"text": " g"}]
    field = PromptModules.model_validate({"parts": parts})
    with applied(RequestOptions(prompt_modules=field)):
        plan = plan_if_pml(front_end, {"prompt": " h"})[PLAN_FIELD]
    words: Any = front_end.planner.schemas.compiler.tokenizer._tokenizer
    assert words.text(plan.prompt_token_ids) == "a b c d e f g h"
    assert [path for path, _ in plan.detail["modules"]] == ["#1 d"]
    assert plan.num_cached_tokens == 3
    with pytest.raises(PlanError, match="in a chat, mark parts of messages"):
        PMLChat.find([{"role": "user", "content": "x"}], field)


@pytest.mark.parametrize(
    "field",
    [
        {"parts": [{"module": ""}]},
        {"parts": [{"module": "a", "text": "b"}]},
        {"parts": [{"module": "a", "encode": "exact"}]},
        {"parts": [{"module": "a"}], "schema": "s"},
        {"parts": [{"module": "a"}], "imports": ["a"]},
    ],
)
def test_bad_parts(field: Any) -> None:
    with pytest.raises(ValidationError):
        PromptModules.model_validate(field)


def test_the_field_goes_on_and_takes_the_text_as_it_is(front_end: FrontEnd) -> None:
    with applied(FIELD):
        planned = plan_if_pml(front_end, {"prompt": "text"})
        assert planned[PLAN_FIELD].num_cached_tokens == 5
        if not front_end.reads_pml:
            assert "Repeat" in planned_text(front_end, plan_if_pml(front_end, {"prompt": DOCUMENT}))


def planned_text(front_end: FrontEnd, planned: Any) -> str:
    words: Any = front_end.planner.schemas.compiler.tokenizer._tokenizer
    text: str = words.text(planned["prompt_token_ids"])
    assert text.startswith("a b c d e < prompt schema =")
    return text


def test_a_chat(front_end: FrontEnd) -> None:
    assert (PMLChat.find(MESSAGES, kind_of=front_end.kind_of) is not None) is front_end.reads_pml
    if not front_end.reads_pml:
        assert PMLChat.find(MESSAGES * 3, kind_of=front_end.kind_of) is None
        assert PMLChat.find(MESSAGES, FIELD.form, front_end.kind_of) is not None


def test_the_option() -> None:
    assert PromptModulesConfig.parse({}).prompts_from == "any"
    assert PromptModulesConfig.parse({"prompts_from": "field"}).prompts_from == "field"
    with pytest.raises(UnsupportedError, match="'prompts_from': Input should be 'any' or 'field'"):
        PromptModulesConfig.parse({"prompts_from": "text"})


def test_offline_there_is_no_field() -> None:
    with pytest.raises(UnsupportedError, match="no requests with a field"):
        LLM("no such model", prompt_modules={"prompts_from": "field"})
