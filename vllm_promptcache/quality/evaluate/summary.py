"""From answers to figures: each policy's means over the rows that all policies have answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_promptcache.quality.evaluate.answers import Answer, AnswerLog, Refusal
from vllm_promptcache.quality.evaluate.bootstrap import Estimate, estimate
from vllm_promptcache.quality.evaluate.contenders import PLAIN
from vllm_promptcache.quality.evaluate.data import DataSet, Row
from vllm_promptcache.quality.evaluate.metrics import Score, score


@dataclass(frozen=True, slots=True)
class Case:
    """A row's answer by a policy, and the plain one.

    Attributes:
        answer: The policy's answer.
        plain: The answer of the plain prefill.
        score: How good the first is.
        plain_score: How good the second is.
    """

    answer: Answer
    plain: Answer
    score: Score
    plain_score: Score

    @property
    def agrees(self) -> bool:
        """Whether both have the same text."""
        return self.answer.text == self.plain.text

    def share(self, num_tokens: int) -> float:
        """So many tokens as a share of the modules' tokens."""
        return num_tokens / self.answer.num_module_tokens


# Figures that are means over rows.
MEANS: Mapping[str, Callable[[Case], float]] = {
    "score": lambda case: case.score.score,
    "exact": lambda case: case.score.exact or 0.0,
    "difference": lambda case: case.score.score - case.plain_score.score,
    "agreement": lambda case: float(case.agrees),
    "divergence": lambda case: case.answer.divergence,
    "recomputed_share": lambda case: case.share(case.answer.num_recomputed_tokens),
    "encoded_share": lambda case: case.share(case.answer.num_encoded_tokens),
}


@dataclass(frozen=True, slots=True)
class Result:
    """A policy on a data set.

    Attributes:
        data: Name of the data set.
        metric: Its metric.
        policy: Name of the policy.
        num_rows: Rows that all policies have answered.
        figures: `MEANS`, and the median `first_token_s`; `exact` only where the metric has it.
    """

    data: str
    metric: str
    policy: str
    num_rows: int
    figures: Mapping[str, Estimate]


def summarize(data: DataSet, policies: Sequence[str], log: AnswerLog) -> list[Result]:
    """Figures of a data set, one result a policy; none if no row has been answered by all."""
    rows = [row for row in data.rows if log.refusal(data.name, row.id, policies) is None]
    metric = ", ".join(sorted({row.metric for row in rows}))
    if not rows:
        return []
    cases = {policy: [_case(data.name, row, policy, log) for row in rows] for policy in policies}
    return [
        Result(data.name, metric, policy, len(rows), dict(_figures(cases[policy])))
        for policy in policies
    ]


def refusals(data: DataSet, policies: Sequence[str], log: AnswerLog) -> list[Refusal]:
    """The rows that were skipped."""
    found = (log.refusal(data.name, row.id, policies) for row in data.rows)
    return [refusal for refusal in found if refusal is not None]


def _case(data: str, row: Row, policy: str, log: AnswerLog) -> Case:
    answer, plain = log.get(data, row.id, policy), log.get(data, row.id, PLAIN)
    assert isinstance(answer, Answer)
    assert isinstance(plain, Answer)
    scores = (score(row.metric, found.text, row.answers) for found in (answer, plain))
    return Case(answer, plain, *scores)


def _figures(cases: Sequence[Case]) -> Iterator[tuple[str, Estimate]]:
    has_exact = all(case.score.exact is not None for case in cases)
    for name, figure in MEANS.items():
        if name != "exact" or has_exact:
            yield name, estimate([figure(case) for case in cases])
    # The median: whatever else the machine does makes some runs much slower.
    yield "first_token_s", estimate([case.answer.first_token_s for case in cases], np.median)
