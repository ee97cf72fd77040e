"""Scores, against cases computed by hand."""

from __future__ import annotations

from importlib import util

import pytest

from vllm_promptcache.errors import ClientError
from vllm_promptcache.quality.evaluate import metrics
from vllm_promptcache.quality.evaluate.metrics import (
    Score,
    check_metrics,
    normalise,
    score,
    subspan_match,
)


def test_f1_is_that_of_words_for_the_nearest_answer() -> None:
    # Words "in old oban" and "oban": precision 1/3, recall 1.
    found = score("f1", "In the old Oban!", ["Arran", "Oban"])
    assert found.score == pytest.approx(100 * 2 * (1 / 3) / (1 / 3 + 1))
    assert found.exact == 0


def test_exact_match_ignores_case_articles_and_punctuation() -> None:
    assert score("f1", "The Ferry.", ["a ferry"]) == Score(100, 100)
    assert normalise(" The  Ferry, a an.") == "ferry"


def test_no_word_in_common_scores_nothing() -> None:
    assert score("f1", "", ["nine"]) == Score(0, 0)
    assert score("f1", "ten", ["nine"]) == Score(0, 0)


def test_subspan_match_stands_beside_f1() -> None:
    # Words "it leaves at nine" and "at nine": precision 1/2, recall 1.
    found = score("subspan_em/f1", "It leaves at nine.", ["at nine"])
    assert found.score == pytest.approx(100 * 2 / 3)
    assert found.exact == 100


@pytest.mark.parametrize(
    ("text", "matches"),
    [("Paragraph 1.", True), ("It is paragraph 1, I think", True), ("Paragraph 19", False)],
)
def test_accuracy_looks_for_whole_words(text: str, matches: bool) -> None:
    assert subspan_match(text, ["Paragraph 1"]) == 100 * matches
    assert score("accuracy", text, ["Paragraph 1"]) == Score(100 * matches)


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    # "the ferry leaves" of 4 and of 5 words: precision 3/4, recall 3/5.
    found = score("rougeL", "The ferry now leaves", ["x", "the big ferry leaves early"])
    assert found.score == pytest.approx(100 * 2 * 0.75 * 0.6 / 1.35)
    assert found.exact is None
    assert score("rougeL", "", ["the ferry"]).score == 0


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_metrics()
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(ClientError, match=r"pip install \"vllm-promptcache\[evaluate\]\""):
        check_metrics()
    assert util.find_spec("torchmetrics")
