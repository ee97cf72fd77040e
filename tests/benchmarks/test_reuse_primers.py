"""Primers of the reuse study."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from benchmarks.reuse_caches import average
from benchmarks.reuse_policies import MADE_UP, SIBLINGS
from benchmarks.reuse_primers import Primers
from benchmarks.reuse_study import split
from vllm_promptcache.quality.evaluate.data import Row


def write(text: str, add_special_tokens: bool) -> SimpleNamespace:
    """A token a character."""
    return SimpleNamespace(input_ids=[ord(char) for char in text])


def row(number: int, num_documents: int = 2) -> Row:
    docs = tuple(f"text {number}.{index} " + "x" * 200 for index in range(num_documents))
    return Row(id=str(number), metric="f1", docs=docs, question="?", answers=("!",))


@pytest.fixture
def primers() -> Primers:
    rows = [row(number, 1 + number % 3) for number in range(8)]
    return Primers.write("Page", rows, write)


def text(tokens: list[int]) -> str:
    return "".join(map(chr, tokens))


@pytest.mark.parametrize("name", [*MADE_UP, *SIBLINGS])
def test_every_named_primer_is_a_text(primers: Primers, name: str) -> None:
    (primer,) = primers.behind(name, 1)
    assert text(primer).endswith("\n\n")


@pytest.mark.parametrize("name", ["form1", "form2", "form3", *SIBLINGS])
def test_primers_have_the_form_of_the_documents(primers: Primers, name: str) -> None:
    (primer,) = primers.behind(name, 1)
    starts = [text(primer).index(f"Page {number}:\n") for number in range(1, 5)]
    assert starts[0] == 0
    assert all(first < second for first, second in pairwise(starts))


def test_sets_of_siblings_are_of_other_rows(primers: Primers) -> None:
    first, second = (text(*primers.behind(name, 1)) for name in SIBLINGS)
    assert [number for number in range(8) if f"text {number}.0" in first] == [0, 1, 2, 3]
    assert [number for number in range(8) if f"text {number}.0" in second] == [4, 5, 6, 7]


def test_the_oracle_has_what_stands_before_a_place_in_other_rows(primers: Primers) -> None:
    found = list(map(text, primers.behind("oracle:2", 2)))
    assert [primer.count("Page ") for primer in found] == [2, 2]
    # The first row has but one document.
    assert "text 1.1" in found[0]
    assert "text 2.1" in found[1]


def test_a_mean_may_have_the_mean_norm() -> None:
    keys = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    versions = torch.stack((keys, keys), dim=1)[:, None, :, None, None]
    assert torch.equal(average(versions)[0, :, 0, 0], torch.tensor([[1.5, 0.5]] * 2))
    key, value = average(versions, has_norm=True)[0, :, 0, 0]
    assert key.norm().item() == pytest.approx(2.0)
    assert torch.equal(value, torch.tensor([1.5, 0.5]))


def test_rows_with_the_same_documents_are_for_the_same() -> None:
    rows = [row(number // 2).model_copy(update={"id": str(number)}) for number in range(20)]
    parts = split(rows)
    assert {name: len(part) for name, part in parts.items()} == {
        "others": 4,
        "tune": 4,
        "report": 12,
    }
    documents = [{row.docs for row in part} for part in parts.values()]
    assert set.intersection(*documents) == set()
    assert sum(map(len, documents)) == 10
