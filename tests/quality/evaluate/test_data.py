"""Reading rows, choosing and cutting them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.quality.evaluate.rows import line, row, write
from vllm_promptcache.errors import ClientError
from vllm_promptcache.quality.evaluate.data import choose, cut, read_data


def test_a_file_is_read_and_other_fields_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "ferries.jsonl", line(0, task="x", doc_group="g"), line(1))
    data = read_data(path)
    assert data.name == "ferries"
    assert data.rows == (row(0), row(1))
    assert len(data.sha256) == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", ":3: id: Field required"),
        ('{"id": ', ":3: Invalid JSON"),
        ("\udcff", ":3: Invalid JSON"),
    ],
)
def test_a_bad_line_is_an_error_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", line(0))
    with path.open("ab") as file:
        file.write(b"\n" + text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ClientError) as caught:
        read_data(path)
    assert str(caught.value).startswith(f"{path}{message}")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "bleu"}, ":1: metric: Input should be 'f1'"),
        ({"docs": []}, ":1: docs: Tuple should have at least 1 item"),
        ({"answers": []}, ":1: answers: Tuple should have at least 1 item"),
        ({"gold_index": 3}, ":1: Value error, gold_index 3 is no index of docs"),
    ],
)
def test_a_bad_field_is_an_error(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    path = write(tmp_path / "bad.jsonl", line(0, **fields))
    with pytest.raises(ClientError) as caught:
        read_data(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_an_id_may_not_occur_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", line(0), line(1), line(0))
    with pytest.raises(ClientError, match=r":3: there is a row 'r0' before this one"):
        read_data(path)


def test_a_file_that_is_missing_or_empty_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"cannot read .*: No such file"):
        read_data(tmp_path / "none.jsonl")
    with pytest.raises(ClientError, match="has no rows"):
        read_data(write(tmp_path / "empty.jsonl"))


def test_rows_are_chosen_evenly() -> None:
    rows = [row(number, docs=[str(number)]) for number in range(10)]
    assert [each.id for each in choose(rows, 4)] == ["r0", "r2", "r5", "r7"]
    assert choose(rows, None) == choose(rows, 10) == choose(rows, 11) == tuple(rows)


def test_rows_of_the_same_documents_stand_together() -> None:
    rows = [row(number, docs=["even" if number % 2 == 0 else "odd"]) for number in range(5)]
    assert [each.id for each in choose(rows, None)] == ["r0", "r2", "r4", "r1", "r3"]


@pytest.mark.parametrize("num_documents", range(1, 8))
@pytest.mark.parametrize("gold", range(7))
def test_a_cut_row_keeps_the_gold_document(num_documents: int, gold: int) -> None:
    whole = row(docs=list("abcdefg"), gold_index=gold)
    part = cut(whole, num_documents)
    assert len(part.docs) == num_documents
    assert part.gold_index is not None
    assert part.docs[part.gold_index] == "abcdefg"[gold]
    assert "".join(part.docs) in "abcdefg"


def test_only_a_row_that_is_too_long_needs_a_gold_document(tmp_path: Path) -> None:
    assert cut(row(), 3) == row()
    path = write(tmp_path / "long.jsonl", line(0))
    with pytest.raises(ClientError, match=r":1: row 'r0' cannot be cut to 2 .* no gold_index"):
        read_data(path, num_documents=2)
