"""The log of answers: going on after a stop, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.quality.evaluate.rows import row
from vllm_promptcache.errors import ClientError
from vllm_promptcache.quality.evaluate.answers import Answer, AnswerLog, Refusal
from vllm_promptcache.quality.evaluate.data import DataSet
from vllm_promptcache.quality.evaluate.report import markdown
from vllm_promptcache.quality.evaluate.summary import refusals, summarize
from vllm_promptcache.quality.first_token import FirstToken

SETTINGS = {"model": "tiny", "max_tokens": None}
PLAIN = Answer("trips", "r0", "plain", "at\n“nine”", 0.0, 2.0, 50, 50, 0, FirstToken((1,), (-0.5,)))
OTHER = Answer("trips", "r0", "isolated", "nine", 0.25, 0.5, 50, 5, 40)
REFUSAL = Refusal("trips", "r1", "isolated", "too long")
DATA = DataSet("trips", (row(0), row(1)), "")


def test_a_log_is_read_again(tmp_path: Path) -> None:
    log = AnswerLog.open(tmp_path / "out", SETTINGS)
    for entry in (PLAIN, OTHER, REFUSAL):
        log.append(entry)
    again = AnswerLog.open(tmp_path / "out", SETTINGS)
    assert again.get("trips", "r0", "plain") == PLAIN
    assert again.get("trips", "r0", "isolated") == OTHER
    assert again.get("trips", "r0", "exact") is None
    assert again.refusal("trips", "r1", ["plain", "isolated"]) == REFUSAL
    assert again.refusal("trips", "r1", ["plain"]) is None


def test_a_line_that_was_not_finished_is_cut_off(tmp_path: Path) -> None:
    log = AnswerLog.open(tmp_path, SETTINGS)
    log.append(PLAIN)
    with log.path.open("a") as file:
        file.write('{"data": "trips", "row": "r0", "poli')
    again = AnswerLog.open(tmp_path, SETTINGS)
    again.append(OTHER)
    assert AnswerLog.open(tmp_path, SETTINGS).get("trips", "r0", "isolated") == OTHER


def test_a_damaged_line_is_an_error_with_its_place(tmp_path: Path) -> None:
    log = AnswerLog.open(tmp_path, SETTINGS)
    log.append(PLAIN)
    with log.path.open("a") as file:
        file.write("{}\n")
    with pytest.raises(ClientError, match=r"answers.jsonl:2: this is no answer"):
        AnswerLog.open(tmp_path, SETTINGS)


def test_other_settings_are_an_error_and_new_ones_are_added(tmp_path: Path) -> None:
    AnswerLog.open(tmp_path, SETTINGS)
    AnswerLog.open(tmp_path, SETTINGS | {"sha256 of more": "12"})
    with pytest.raises(ClientError, match="has answers with model 'tiny', not 'big'; choose"):
        AnswerLog.open(tmp_path, SETTINGS | {"model": "big"})
    with pytest.raises(ClientError, match="with sha256 of more '12', not '34'"):
        AnswerLog.open(tmp_path, SETTINGS | {"sha256 of more": "34"})


def test_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ClientError, match="cannot use"):
        AnswerLog.open(tmp_path / "file", SETTINGS)


def test_figures_are_of_rows_that_all_policies_have_answered(tmp_path: Path) -> None:
    log = AnswerLog.open(tmp_path, SETTINGS)
    for entry in (PLAIN, OTHER, dataclasses.replace(PLAIN, row="r1"), REFUSAL):
        log.append(entry)
    policies = ["plain", "isolated"]
    plain, other = summarize(DATA, policies, log)
    assert plain.num_rows == other.num_rows == 1
    values = {name: figure.value for name, figure in other.figures.items()}
    assert values == {
        "score": 100.0,
        "exact": 100.0,
        # Of the plain answer's two words only "at" is right: these quotation marks stay.
        "difference": 50.0,
        "agreement": 0.0,
        "divergence": 0.25,
        "recomputed_share": 0.1,
        "encoded_share": 0.8,
        "first_token_s": 0.5,
    }
    skipped = refusals(DATA, policies, log)
    assert skipped == [REFUSAL]
    text = "\n".join(markdown(SETTINGS, [plain, other], skipped))
    assert "| isolated | 100.0 | 100.0 | +50.0 | 0.0% | 0.250 | 10.0% | 80.0% | 0.500 |" in text
    assert "- trips, row r1, isolated: too long" in text


def test_a_set_without_such_rows_has_no_results(tmp_path: Path) -> None:
    log = AnswerLog.open(tmp_path, SETTINGS)
    log.append(Refusal("trips", "r0", "plain", "too long"))
    assert summarize(DataSet("trips", (row(0),), ""), ["plain"], log) == []
