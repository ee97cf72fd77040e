"""The questions that come with the package: places, machines and people that do not exist."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from pydantic import BaseModel, TypeAdapter

from vllm_promptcache.quality.evaluate.data import DataSet, Row, choose


class _Question(BaseModel):
    question: str
    answers: tuple[str, ...]


class _Group(BaseModel):
    name: str
    docs: tuple[str, ...]
    questions: tuple[_Question, ...]


_GROUPS = TypeAdapter(tuple[_Group, ...])


def builtin_questions(limit: int | None) -> DataSet:
    """Up to `limit` of the questions; each group of them has five documents of its own."""
    content = files(__package__).joinpath("questions.json").read_bytes()
    rows = [
        Row(id=f"{g.name}-{n}", metric="f1", docs=g.docs, question=q.question, answers=q.answers)
        for g in _GROUPS.validate_json(content)
        for n, q in enumerate(g.questions)
    ]
    return DataSet("builtin", choose(rows, limit), hashlib.sha256(content).hexdigest())
