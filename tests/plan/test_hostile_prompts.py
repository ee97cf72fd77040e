"""Hostile prompts for schemas of 2,000 modules are planned or refused while others wait little."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import cache

import pytest

from tests.engine.planning_cases import LAYOUTS, documents, large_schemas
from tests.layout.word_tokenizer import WordTokenizer
from tests.plan.planning import make_planner
from vllm_promptcache.errors import PMLError
from vllm_promptcache.plan import Planner
from vllm_promptcache.pml import parse_schema
from vllm_promptcache.sequence.codec import unpack_plan

MAX_MODEL_LEN = 16_384
DOCUMENTS = dict(documents(MAX_MODEL_LEN))
# A tenth of a second is usual. What grew with the square took up to half a minute.
MAX_SECONDS = 3.0
MAX_UNPACK_SECONDS = 0.5


@cache
def planner() -> Planner:
    """With what an engine has by default."""
    made = make_planner(WordTokenizer(), max_model_len=MAX_MODEL_LEN, block_size=16)
    for schema in large_schemas(MAX_MODEL_LEN).values():
        made.schemas.add(parse_schema(schema))
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_prompt_is_planned_or_refused_in_time(name: str, layout: str) -> None:
    text, plan = f'<prompt schema="{layout}"{DOCUMENTS[name]}</prompt>', None
    planner()
    since = time.perf_counter()
    with suppress(PMLError):
        plan = planner().plan(text)
    assert time.perf_counter() - since < MAX_SECONDS
    if plan is not None:
        since = time.perf_counter()
        unpack_plan(plan.packed, num_prompt_tokens=plan.num_tokens)
        assert time.perf_counter() - since < MAX_UNPACK_SECONDS
