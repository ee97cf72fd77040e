"""What a request's body tells about its modules."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_promptcache.distributed.hint import MAX_NUM_MODULES, Hint, module_key
from vllm_promptcache.distributed.http import HttpRequest

PML = "<prompt schema='travel'><trip-plan duration='3 days'/><miami/> Where?</prompt>"
EXPECTED = Hint("travel", ("trip-plan", "miami"))


def hint(body: Any, path: str = "/v1/completions", method: str = "POST") -> Hint | None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Hint.of(HttpRequest(method, path, body=data))


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": PML},
        {"prompt": ["plain text", PML]},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": PML}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": PML}]}]},
        {"input": PML},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": PML}]}]},
        {"prompt": PML.replace("'travel'", ' "travel"'.strip())},
    ],
)
def test_the_modules_of_a_prompt(body: Any) -> None:
    assert hint(body) == EXPECTED


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        {"prompt": "plain"},
        {"prompt": 7},
        {"messages": 7},
        {"messages": [{"content": [{"text": 7, "module": True}]}]},
        {"prompt": "<prompt schema='open"},
        [1, 2],
        None,
        {"prompt": "text with <prompt schema='s'> inside"},
    ],
)
def test_others_have_none(body: Any) -> None:
    assert hint(body) is None


def test_marked_chats_have_the_longest_marked_text_in_common() -> None:
    def chat(*texts: str, field: str = "messages") -> Hint | None:
        parts = [{"type": "text", "text": t, "cache_control": {"type": "ephemeral"}} for t in texts]
        content = [*parts, {"type": "text", "text": "Who is to blame, and what is to be done?"}]
        return hint({field: [{"role": "user", "content": content}, "x", {"content": 7}]})

    assert chat("short", "a longer one") == chat("a longer one", "other", field="input")
    assert chat("short") != chat("a longer one") is not None
    assert chat() is None


def test_routes_of_a_schema() -> None:
    assert hint(b"", "/v1/prompt_schemas/travel", "GET") == Hint("travel")
    assert hint(b"", "/v1/prompt_schemas/travel/explain") == Hint("travel")
    assert hint({"schema": "<schema name='travel'>x</schema>"}, "/v1/prompt_schemas") == Hint(
        "travel"
    )
    assert hint(b"", "/v1/models", "GET") is None


def test_a_huge_prompt_names_so_many_modules_and_no_more() -> None:
    tags = "".join(f"<m{i}/>" for i in range(10 * MAX_NUM_MODULES))
    found = hint({"prompt": f"<prompt schema='s'>{tags}</prompt>"})
    assert found is not None
    assert len(found.modules) == MAX_NUM_MODULES


def test_keys_tell_schemas_and_modules_apart() -> None:
    keys = [*Hint("a", ("b", "c")).keys, *Hint("ab", ("c",)).keys, module_key("a", "bc")]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 8 for key in keys)
