"""Scores of an answer, from 0 to 100. F1, exact match and rougeL are those of torchmetrics."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from vllm_promptcache.errors import ClientError
from vllm_promptcache.quality.evaluate.data import Metric


@dataclass(frozen=True, slots=True)
class Score:
    """How good an answer is.

    Attributes:
        score: The metric itself; F1 for `subspan_em/f1`.
        exact: Exact match for `f1`, that of a part of the answer for `subspan_em/f1`, else None.
    """

    score: float
    exact: float | None = None


def check_metrics() -> None:
    """Checks that scores can be computed.

    Raises:
        ClientError: torchmetrics is missing.
    """
    if find_spec("torchmetrics") is None:
        raise ClientError('scores need torchmetrics: pip install "vllm-promptcache[evaluate]"')


def score(metric: Metric, text: str, answers: Sequence[str]) -> Score:
    """Scores an answer against the right answers, of which the nearest counts."""
    match metric:
        case "rougeL":
            return Score(_rouge_l(text, answers))
        case "accuracy":
            return Score(subspan_match(text, answers))
        case "f1":
            return Score(*_squad(text, answers))
        case "subspan_em/f1":
            return Score(_squad(text, answers)[0], subspan_match(text, answers))


def subspan_match(text: str, answers: Sequence[str]) -> float:
    """100 if the words of an answer stand in the text one after the other, else 0."""
    words = f" {normalise(text)} "
    return 100.0 * any(f" {normalise(answer)} " in words for answer in answers)


def normalise(text: str) -> str:
    """Lower case without punctuation, articles and surplus white space, as SQuAD's script does."""
    kept = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def _squad(text: str, answers: Sequence[str]) -> tuple[float, float]:
    """F1 of words and exact match."""
    from torchmetrics.functional.text import squad

    # Starts are part of the format, and not looked at.
    right: dict[str, list[str] | list[int]] = {
        "text": list(answers),
        "answer_start": [0] * len(answers),
    }
    found = squad({"id": "", "prediction_text": text}, {"id": "", "answers": right})
    return found["f1"].item(), found["exact_match"].item()


def _rouge_l(text: str, answers: Sequence[str]) -> float:
    """F measure of the longest common subsequence of words; no stemming."""
    from torchmetrics.functional.text import rouge_score

    found = rouge_score(text, [list(answers)], accumulate="best", rouge_keys="rougeL")
    return 100.0 * found["rougeL_fmeasure"].item()
