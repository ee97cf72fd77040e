"""Explanations: the whole plan of a prompt as plain data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.layout.templates import CHATML
from tests.layout.word_tokenizer import WordTokenizer
from tests.plan.planning import PAPER, make_planner
from tests.plan.planning import PaperPrompts as Prompts
from vllm_promptcache.plan import Explanation
from vllm_promptcache.pml import parse_schema

GOLDEN = Path(__file__).parent / "golden"


def readable(explanation: dict[str, Any], tokenizer: WordTokenizer) -> dict[str, Any]:
    """The same with words instead of token ids, whose values mean nothing."""
    for part in (*explanation["modules"], *explanation["new"]):
        part["words"] = tokenizer.text(part.pop("token_ids"))
        # Nothing is moved in the example.
        assert part.pop("encoded_position_ids", part["position_ids"]) == part["position_ids"]
    return explanation


def test_travel_example() -> None:
    tokenizer = WordTokenizer(CHATML)
    planner = make_planner(tokenizer, PAPER, max_model_len=100, block_size=4)
    planner.schemas.add(parse_schema((GOLDEN / "travel-schema.pml").read_text()))
    plan = planner.plan((GOLDEN / "travel-prompt.pml").read_text())
    expected = json.loads((GOLDEN / "travel.json").read_text())
    assert readable(Explanation.of(plan).to_dict(), tokenizer) == expected


def test_keys_and_types_are_those_of_the_format() -> None:
    prompts = Prompts('<module name="a">one <param name="p" len="2"/></module>')
    explanation = Explanation.of(prompts.plan("<a p='x'/>")).to_dict()
    assert explanation == json.loads(json.dumps(explanation))
    assert list(explanation) == [
        "schema",
        "num_tokens",
        "num_cached_tokens",
        "num_new_tokens",
        "num_attended_tokens",
        "next_position",
        "modules",
        "new",
    ]
    root, module = explanation["modules"]
    assert root["path"] == ""
    assert root["token_ids"] == []
    assert list(module) == [
        "path",
        "start",
        "token_ids",
        "position_ids",
        "encoded_position_ids",
        "kept",
        "reused",
        "context",
        "policy",
        "num_full_blocks",
        "num_tail_tokens",
    ]
    assert module["reused"] == [True, False, False]
    assert list(explanation["new"][0]) == ["kind", "owner", "token_ids", "position_ids"]


def test_a_token_that_is_computed_again_is_not_kept() -> None:
    prompts = Prompts('<module name="a">1 <param name="p" len="1"/> 2</module>')
    explanation = Explanation.of(prompts.plan("<a p=''/>"))
    assert explanation.modules[1].reused == (True, False, False)
    assert explanation.new[0].position_ids == (2,)


def test_contexts_point_into_the_list_of_modules() -> None:
    prompts = Prompts(
        """r <module name="x">x</module>
        <module name="a" encode="anchored">a <module name="b" encode="anchored">b</module></module>
        """
    )
    explanation = Explanation.of(prompts.plan("<x/><b/> end"))
    assert [module.path for module in explanation.modules] == ["", "x", "a", "a/b"]
    assert explanation.modules[3].context == ((0, 1), (2, 1))


def test_a_baseline_has_no_modules() -> None:
    prompts = Prompts('r <module name="a">a a</module>')
    explanation = Explanation.of(prompts.plan("<a/> end", reuse=False))
    assert explanation.modules == ()
    assert [(new.kind, new.owner) for new in explanation.new] == [
        ("repeated", ""),
        ("repeated", "a"),
        ("text", ""),
    ]
