"""Rows to evaluate on: questions about documents, one JSON object a line."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vllm_promptcache.errors import ClientError

Metric: TypeAlias = Literal["f1", "subspan_em/f1", "accuracy", "rougeL"]


class Row(BaseModel):
    """A question about documents; other fields of the line are ignored.

    Attributes:
        id: Names the row within its file.
        metric: How answers are scored.
        docs: The documents, in order.
        question: The question; empty for a summary.
        answers: Answers that are right.
        gold_index: Which document holds the answer, where that is known.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    metric: Metric
    docs: tuple[str, ...] = Field(min_length=1)
    question: str
    answers: tuple[str, ...] = Field(min_length=1)
    gold_index: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _check_gold_index(self) -> Self:
        if self.gold_index is not None and self.gold_index >= len(self.docs):
            raise ValueError(f"gold_index {self.gold_index} is no index of docs")
        return self


@dataclass(frozen=True, slots=True)
class DataSet:
    """The rows of a file that are evaluated.

    Attributes:
        name: The file's name without its ending.
        rows: Rows that share their documents stand together.
        sha256: Of the whole file, in hex.
    """

    name: str
    rows: tuple[Row, ...]
    sha256: str


def read_data(path: Path, limit: int | None = None, num_documents: int | None = None) -> DataSet:
    """Reads a file and chooses from it; see `choose` and `cut`.

    Raises:
        ClientError: The file cannot be read, or has no rows; a line is not valid, or cannot be cut.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ClientError(f"cannot read {path}: {error.strerror}") from error
    rows: dict[str, Row] = {}
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            row = _read_row(line, f"{path}:{number}", num_documents)
            if rows.setdefault(row.id, row) is not row:
                raise ClientError(f"{path}:{number}: there is a row {row.id!r} before this one")
    if not rows:
        raise ClientError(f"{path} has no rows")
    chosen = choose(tuple(rows.values()), limit)
    return DataSet(path.stem, chosen, hashlib.sha256(content).hexdigest())


def _read_row(line: bytes, place: str, num_documents: int | None) -> Row:
    try:
        row = Row.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ClientError(f"{place}: {f'{field}: ' if field else ''}{first['msg']}") from error
    try:
        return row if num_documents is None else cut(row, num_documents)
    except ClientError as error:
        raise ClientError(f"{place}: {error}") from error


def choose(rows: Sequence[Row], limit: int | None) -> tuple[Row, ...]:
    """Takes up to `limit` rows at even distances, with rows of the same documents together."""
    first: dict[tuple[str, ...], int] = {}
    for place, row in enumerate(rows):
        first.setdefault(row.docs, place)
    ordered = sorted(rows, key=lambda row: first[row.docs])
    if limit is None or limit >= len(rows):
        return tuple(ordered)
    return tuple(ordered[index * len(rows) // limit] for index in range(limit))


def cut(row: Row, num_documents: int) -> Row:
    """Leaves so many documents in a row: neighbours, the gold one about as far along as before.

    Raises:
        ClientError: There are more, and it is not known which of them holds the answer.
    """
    if len(row.docs) <= num_documents:
        return row
    if row.gold_index is None:
        raise ClientError(
            f"row {row.id!r} cannot be cut to {num_documents} documents: no gold_index"
        )
    start = row.gold_index * (len(row.docs) - num_documents) // (len(row.docs) - 1)
    docs = row.docs[start : start + num_documents]
    return row.model_copy(update={"docs": docs, "gold_index": row.gold_index - start})
