"""Answers with their log-probabilities, and how far two of them are apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

Answer: TypeAlias = tuple[tuple[int, float], ...]
"""The token ids of a greedy answer, each with its log-probability."""


@dataclass(frozen=True, slots=True)
class Distance:
    """How far two runs of the same prompts are apart.

    Attributes:
        mean: Mean difference of log-probabilities, in nats, over all tokens up to the first that
            differs in an answer, that one included.
        largest: The largest one.
        num_equal: Answers with the same tokens.
        num_answers: All of them.
    """

    mean: float
    largest: float
    num_equal: int
    num_answers: int

    @classmethod
    def between(cls, answers: Sequence[Answer], others: Sequence[Answer]) -> Distance:
        """Compares answers to the same prompts, in the same order."""
        found = [_differences(*pair) for pair in zip(answers, others, strict=True)]
        all_found = [number for numbers in found for number in numbers]
        tokens = [[token for token, _ in answer] for answer in (*answers, *others)]
        num_equal = sum(map(list.__eq__, tokens[: len(answers)], tokens[len(answers) :]))
        return cls(fmean(all_found), max(all_found), num_equal, len(answers))

    def is_within(self, noise: Distance, tolerance: float) -> bool:
        """Whether it is rounding.

        Args:
            noise: The distance of two runs that compute the same in another order.
            tolerance: Nats that may always be between means.
        """
        return self.mean <= 3 * noise.mean + tolerance


def _differences(answer: Answer, other: Answer) -> Iterable[float]:
    for (token, logprob), (other_token, other_logprob) in zip(answer, other, strict=True):
        yield abs(logprob - other_logprob)
        if token != other_token:
            return
