"""Rows of a batch: what is asked, and what is told of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_promptcache.distributed.batch_rows import Answer, Row, answers, first_twice

BODY = {"model": "m", "prompt": "<prompt schema='s'><a/> x</prompt>"}


def line(**others: Any) -> str:
    return json.dumps({"custom_id": "r", "url": "/v1/completions", "body": BODY} | others)


def test_a_row_is_a_request() -> None:
    row = Row.of_line(line())
    request = row.request("key")
    assert (row.custom_id, row.problem, request.path) == ("r", "", "/v1/completions")
    assert json.loads(request.body) == BODY
    assert (b"authorization", b"Bearer key") in request.headers
    assert row == Row.of_fields(
        {"custom_id": "r", "url": "/v1/completions", "body": json.dumps(BODY)}
    )


def test_rows_of_the_same_modules_are_a_group() -> None:
    others = [BODY | {"prompt": f"<prompt schema='{name}'><a/> y</prompt>"} for name in "st"]
    first, same, other = (Row.of_line(line(body=body)).group for body in (BODY, *others))
    assert first == same != other
    assert Row.of_line(line(body={"prompt": "plain"})).group == ""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[1]", "no JSON object"),
        (line(url="/v1/embeddings"), "not one of /v1/completions"),
        (line(url=None), "not one of"),
        (line(body=[1]), "no JSON object"),
        (line(body="{"), "the body is no JSON"),
        (line(body=BODY | {"stream": True}), "stream"),
    ],
)
def test_a_bad_row_says_why(text: str, problem: str) -> None:
    row = Row.of_line(text)
    assert problem in row.problem
    assert row.custom_id
    assert row.group == ""


def test_what_is_told_is_what_openai_tells(tmp_path: Path) -> None:
    made = [Answer("a", 200, b'{"x": 1}'), Answer("b", 400, b"no"), Answer("c", 0, b"bad")]
    told = [json.loads(answer.line) for answer in made]
    assert told[0] == {
        "custom_id": "a",
        "response": {"status_code": 200, "body": {"x": 1}},
        "error": None,
    }
    assert told[1]["response"] == {"status_code": 400, "body": "no"}
    assert told[2]["error"] == {"code": "invalid_row", "message": "bad"}
    part = tmp_path / "one.jsonl"
    part.write_bytes(b"".join(answer.line for answer in made) + b'{"custom_id": "d"')
    (tmp_path / "two.jsonl").write_bytes(Answer("a", 500, b"late").line)
    assert [line for _, line in answers(tmp_path)] == [answer.line for answer in made]


def test_a_name_that_is_there_twice_is_found() -> None:
    assert first_twice(["a", "b", "c"]) is None
    assert first_twice(["a", "b", "a", "b"]) == "a"
