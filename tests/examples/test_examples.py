"""The example schemas compile, and their prompts can be planned."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.layout.templates import CHATML
from tests.layout.word_tokenizer import WordTokenizer
from tests.plan.planning import PAPER, make_planner
from vllm_promptcache.examples import SCHEMA_FOLDER, SCHEMAS, prompt_paths, schema_path
from vllm_promptcache.layout.tokenizer import HFTokenizer
from vllm_promptcache.plan import Planner
from vllm_promptcache.pml import parse_schema

SMOLLM2_MAX_MODEL_LEN = 8192
PROMPTS = [path for name in SCHEMAS for path in prompt_paths(name)]


def _smollm2_tokenizer(folder: Path) -> HFTokenizer:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=["words", pytest.param("smollm2", marks=pytest.mark.engine)])
def planner(request: pytest.FixtureRequest) -> Planner:
    """A planner with all example schemas: for one token a word, and for the demo's model."""
    tokenizer = WordTokenizer(CHATML)
    if request.param == "smollm2":
        tokenizer = _smollm2_tokenizer(request.getfixturevalue("smollm2"))
    planner = make_planner(tokenizer, PAPER, max_model_len=SMOLLM2_MAX_MODEL_LEN, block_size=32)
    for name in SCHEMAS:
        path = schema_path(name)
        schema = parse_schema(path.read_text("utf-8"), name=str(path), base_dir=SCHEMA_FOLDER)
        planner.schemas.add(schema)
    return planner


def test_files_and_schemas_have_the_same_names(planner: Planner) -> None:
    assert set(planner.schemas.names) == {path.stem for path in SCHEMA_FOLDER.glob("*.pml")}
    assert all(len(prompt_paths(name)) >= 4 for name in SCHEMAS)


def test_modules_are_worth_reusing(planner: Planner) -> None:
    named = [m for layout in planner.schemas.layouts.values() for m in layout.modules if m.path]
    assert all(module.num_kept_tokens > 50 for module in named if module.name != "trip-plan")


@pytest.mark.parametrize("path", PROMPTS, ids=lambda path: path.stem)
def test_a_prompt_reuses_most_of_its_tokens(planner: Planner, path: Path) -> None:
    pml = path.read_text("utf-8")
    plan, plain = planner.plan(pml), planner.plan(pml, reuse=False)
    assert plan.schema == path.parent.name
    assert plan.num_cached_tokens > 10 * plan.num_new_tokens
    assert plain.num_cached_tokens == 0
    assert plain.num_tokens == plan.num_tokens
