"""Rows of a batch job: what is asked, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from vllm_promptcache.distributed.hint import Hint
from vllm_promptcache.distributed.http import HttpRequest

URLS = ("/v1/completions", "/v1/chat/completions", "/v1/responses")


@dataclass(frozen=True, slots=True)
class Row:
    """A request of a batch.

    Attributes:
        custom_id: Names it; that of a row that has none is made of its content.
        url: Where it goes, one of `URLS`.
        body: JSON.
        problem: Why it cannot be asked; empty if it can.
    """

    custom_id: str
    url: str = ""
    body: bytes = b""
    problem: str = ""

    @staticmethod
    def of_line(line: str) -> Row:
        """Reads a line of a JSONL file. Never raises."""
        made_up = sha256(line.encode(errors="replace")).hexdigest()[:16]
        try:
            fields = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            return Row(made_up, problem=f"the row is no JSON: {error}")
        if not isinstance(fields, dict):
            return Row(made_up, problem="the row is no JSON object")
        return Row.of_fields({"custom_id": made_up} | fields)

    @staticmethod
    def of_fields(fields: dict[str, Any]) -> Row:
        """Makes a row of its fields; `body` is an object, or JSON. Never raises."""
        custom_id, url, body = str(fields["custom_id"]), fields.get("url"), fields.get("body")
        try:
            decoded = msgspec.json.decode(body) if isinstance(body, str | bytes) else body
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            return Row(custom_id, problem=f"the body is no JSON: {error}")
        if url not in URLS:
            return Row(custom_id, problem=f"url is {url!r}, not one of {', '.join(URLS)}")
        if not isinstance(decoded, dict):
            return Row(custom_id, problem="the body is no JSON object")
        if decoded.get("stream"):
            return Row(custom_id, problem="a batch has no streams: leave out `stream`")
        return Row(custom_id, url, msgspec.json.encode(decoded))

    def request(self, api_key: str) -> HttpRequest:
        """The request that it stands for."""
        headers = [(b"content-type", b"application/json")]
        headers += [(b"authorization", f"Bearer {api_key}".encode())] if api_key else []
        return HttpRequest("POST", self.url, headers=tuple(headers), body=self.body)

    @property
    def group(self) -> str:
        """Rows of one group are asked one behind the other: they read the same modules."""
        if self.problem:
            return ""
        hint = Hint.of(HttpRequest("POST", self.url, body=self.body))
        return "" if hint is None else "\0".join((hint.schema, *sorted(hint.modules)))


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a row, as OpenAI's batch API tells it.

    Attributes:
        custom_id: The row's.
        status: HTTP status; 0 if it was not asked.
        body: The answer, JSON; why it was not asked if it was not.
    """

    custom_id: str
    status: int
    body: bytes

    @property
    def line(self) -> bytes:
        """A line of a JSONL file."""
        response = error = None
        if self.status:
            response = {"status_code": self.status, "body": _decoded(self.body)}
        else:
            error = {"code": "invalid_row", "message": self.body.decode(errors="replace")}
        fields = {"custom_id": self.custom_id, "response": response, "error": error}
        return msgspec.json.encode(fields) + b"\n"


def _decoded(body: bytes) -> Any:
    """The JSON of an answer; the text of one that has none."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError):
        return body.decode(errors="replace")


def first_twice(names: Iterable[str]) -> str | None:
    """The first name that was there before; None if each is there once."""
    seen = set[str]()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def answers(parts: Path) -> Iterator[tuple[str, bytes]]:
    """The answers in a folder of parts: each row's `custom_id`, once, and the line of its answer.

    A line that a killed process has not finished is none.
    """
    seen = set[str]()
    for part in sorted(parts.glob("*.jsonl")):
        with part.open("rb") as lines:
            for line in (line for line in lines if line.endswith(b"\n")):
                name = msgspec.json.decode(line)["custom_id"]
                if name not in seen:
                    seen.add(name)
                    yield name, line
