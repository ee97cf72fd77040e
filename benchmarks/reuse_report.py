"""Results of the reuse study, and the table of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from vllm_promptcache.quality.evaluate.bootstrap import estimate

HEADERS = (
    "policy",
    "recomputed",
    "score",
    "difference to plain",
    "agreement",
    "KL",
    "median KL",
    "KL8",
    "same 8",
)


@dataclass(frozen=True, slots=True)
class Result:
    """What a policy answered to a row.

    Attributes:
        row: Id of the row.
        policy: Name of the policy.
        score: Of the answer, 0 to 100; None where none was asked for, as for the next two.
        agreement: Whether the answer is that of plain.
        answer: The greedy answer.
        kl: KL(plain || policy) of the first token, in nats.
        kl8: Its mean over the first eight tokens of plain's answer.
        same8: Whether each of these is the policy's likeliest, too.
        recomputed: Share of the modules' tokens that were repaired.
    """

    row: str
    policy: str
    score: float | None
    agreement: bool | None
    answer: str | None
    kl: float
    kl8: float
    same8: bool
    recomputed: float


def read_results(path: Path) -> list[Result]:
    """The results so far."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Result(**json.loads(line)) for line in lines]


def append_results(path: Path, results: Iterable[Result]) -> None:
    """Adds results to a file, one a line."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(result)) + "\n" for result in results)


class Report:
    """A table of the results, a line for each policy, over the rows that all of them have.

    Args:
        results: The results, those of "plain" among them.
        policies: The names of the policies, default is all in the order of the results.
        against: A policy to which differences of KL are told, paired by row.
    """

    def __init__(
        self,
        results: Sequence[Result],
        policies: Sequence[str] | None = None,
        against: str | None = None,
    ) -> None:
        names = policies or [result.policy for result in results]
        self.against = against
        self.by_policy: dict[str, dict[str, Result]] = {name: {} for name in ["plain", *names]}
        for result in results:
            if result.policy in self.by_policy:
                self.by_policy[result.policy][result.row] = result

    @cached_property
    def rows(self) -> list[str]:
        """The rows that all policies have."""
        return sorted(set.intersection(*(set(rows) for rows in self.by_policy.values())))

    def values(self, policy: str, field: str) -> np.ndarray:
        """One field of a policy's results."""
        results = self.by_policy[policy]
        return np.array([getattr(results[row], field) for row in self.rows], dtype=float)

    def __str__(self) -> str:
        if not self.rows:
            return "No row has results of all these policies."
        title = f"{len(self.rows)} rows; means with 95 % intervals.\n"
        headers = [*HEADERS, *(f"{name} to {self.against}" for name in self._compared)]
        rows = [headers, ["---"] * len(headers), *map(self._cells, self.by_policy)]
        return "\n".join([title, *(f"| {' | '.join(cells)} |" for cells in rows)])

    @property
    def _compared(self) -> Sequence[str]:
        return ("KL", "KL8") if self.against else ()

    def _cells(self, policy: str) -> Iterator[str]:
        """A line of the table."""
        score, divergence = self.values(policy, "score"), self.values(policy, "kl")
        yield policy.replace("|", r"\|")
        yield f"{self.values(policy, 'recomputed').mean():.1%}"
        yield mean(score, ".1f")
        yield mean(score - self.values("plain", "score"), "+.1f")
        yield mean(self.values(policy, "agreement"), ".0%")
        yield mean(divergence, ".3f")
        yield f"{np.median(divergence):.3f}"
        yield mean(self.values(policy, "kl8"), ".3f")
        yield f"{self.values(policy, 'same8').mean():.0%}"
        for name in self._compared:
            field = name.lower()
            yield mean(self.values(policy, field) - self.values(self.against, field), "+.3f")


def mean(values: np.ndarray, form: str) -> str:
    """The mean with its interval, which a single row has not; empty if nothing was measured."""
    if np.isnan(values).any():
        return ""
    figure = estimate(values)
    text = format(figure.value, form)
    if figure.low is None or figure.high is None:
        return text
    return f"{text} ({format(figure.low, form)}, {format(figure.high, form)})"
