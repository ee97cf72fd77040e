"""The command `quality.evaluate`: what it refuses, and a run on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.pareto import plot, read_rows
from tests.quality.evaluate.rows import line, write
from vllm_promptcache.quality.evaluate import __main__ as command
from vllm_promptcache.quality.evaluate import run

POLICIES = ["plain", "isolated", "anchored"]


def arguments(data: Path, output: Path, model: str, *others: str) -> list[str]:
    given = ["--model", model, "--data", str(data), "--output", str(output), "--dtype", "float32"]
    return [*given, "--max-tokens", "8", "--kv-cache-memory", "0.25", *others]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["--policies", "fast"], "unknown policy 'fast'; choose from plain, "),
        (["--data", "none.jsonl"], "cannot read none.jsonl: No such file or directory"),
        (["--documents", "2"], "trips.jsonl:1: row 'r0' cannot be cut to 2 documents: no gold_ind"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], others: list[str], message: str
) -> None:
    data = write(tmp_path / "trips.jsonl", line(0))
    assert command.main(arguments(data, tmp_path / "out", "none", *others)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_two_files_may_not_have_the_same_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "trips.jsonl", line(0))
    again = ["--data", str(data)]
    assert command.main(arguments(data, tmp_path / "out", "none", *again)) == 2
    assert "two files of --data have the same name" in capsys.readouterr().err


def test_numbers_are_positive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(arguments(tmp_path, tmp_path, "none", "--limit", "0"))
    assert caught.value.code == 2
    assert "argument --limit: " in capsys.readouterr().err


@pytest.mark.engine
def test_rows_are_run_and_not_run_again(
    shallow: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = [
        line(0),
        line(1, question="Which day is the museum closed?", answers=["Mondays"]),
        line(2, docs=["many words " * 400], answers=["none"]),
    ]
    data, output = write(tmp_path / "trips.jsonl", *lines), tmp_path / "out"
    others = ["--policies", ",".join(POLICIES), "--max-model-len", "512"]
    given = arguments(data, output, str(shallow), *others)
    assert command.main(given) == 0
    assert "skipped: trips, row r2, plain: " in capsys.readouterr().out
    results = check_results(output)
    answers = (output / "answers.jsonl").read_text()
    # Nothing is left to run, so no engine is started.
    monkeypatch.setattr(run, "running_engine", None)
    assert command.main(given) == 0
    assert (output / "answers.jsonl").read_text() == answers
    assert check_results(output) == results
    plot(list(read_rows(output / "results.json")), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def check_results(output: Path) -> dict[str, object]:
    """Checks what holds for any model; returns the results."""
    content = json.loads((output / "results.json").read_text())
    assert [result["policy"] for result in content["results"]] == POLICIES
    assert [result["num_rows"] for result in content["results"]] == [2, 2, 2]
    plain, isolated, anchored = (result["figures"] for result in content["results"])
    assert plain["agreement"]["value"] == 1
    assert plain["divergence"]["value"] == plain["difference"]["value"] == 0
    assert plain["recomputed_share"]["value"] == 1
    assert plain["encoded_share"]["value"] == 0
    for figures in (isolated, anchored):
        assert figures["recomputed_share"]["value"] == 0
        # Both rows have the same documents.
        assert 0.3 < figures["encoded_share"]["value"] <= 0.5
        assert figures["divergence"]["value"] > 1e-4
        assert figures["first_token_s"]["value"] > 0
    return content
