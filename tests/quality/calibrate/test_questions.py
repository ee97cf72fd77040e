"""The questions that come with the package."""

from __future__ import annotations

from itertools import groupby

from vllm_promptcache.quality.calibrate.questions import builtin_questions
from vllm_promptcache.quality.evaluate.metrics import normalise


def test_each_group_has_three_questions_about_five_short_documents() -> None:
    rows = builtin_questions(None).rows
    assert len(rows) == len({row.id for row in rows}) == 24
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row.docs)]
    assert [len(group) for group in groups] == [3] * 8
    assert all(len(row.docs) == 5 for row in rows)
    assert all(60 <= len(doc.split()) <= 120 for row in rows for doc in row.docs)


def test_answers_stand_in_the_documents() -> None:
    for row in builtin_questions(None).rows:
        text = " ".join(map(normalise, row.docs))
        assert any(normalise(answer) in text for answer in row.answers), row.id


def test_a_limit_takes_rows_of_all_groups() -> None:
    assert len({row.docs for row in builtin_questions(8).rows}) == 8
