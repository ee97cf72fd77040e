"""How far an engine's output is from the reference, and the sum over many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.reference.model import ReferenceOutput

# The largest difference of log-probabilities in float32, in nats, that counts as rounding.
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Difference:
    """One output against the reference, every step behind the engine's own tokens before it.

    Attributes:
        num_steps: Tokens compared.
        largest: Largest difference of log-probabilities over all steps, in nats.
        lost: By how much less probable than the reference's choice the engine's tokens are, in
            nats; only those that differ from it.
    """

    num_steps: int
    largest: float
    lost: tuple[float, ...]

    def is_within(self, tolerance: float) -> bool:
        """Whether it is rounding only; a token that differs must be tied with the best one."""
        return self.largest <= tolerance and all(nats <= 2 * tolerance for nats in self.lost)

    @staticmethod
    def between(
        reference: ReferenceOutput,
        token_ids: Sequence[int],
        logprobs: Sequence[Mapping[int, float]],
    ) -> Difference:
        """Compares an output with the reference.

        Args:
            reference: `Reference.score(..., token_ids)`.
            token_ids: The engine's tokens, `[num_steps]`.
            logprobs: Its log-probabilities of some tokens of each step, `[num_steps]`.
        """
        largest = max(
            abs(step[token_id].item() - logprob)
            for step, given in zip(reference.logprobs, logprobs, strict=True)
            for token_id, logprob in given.items()
        )
        steps = zip(reference.logprobs, reference.token_ids, token_ids, strict=True)
        lost = tuple((step[best] - step[ours]).item() for step, best, ours in steps if best != ours)
        return Difference(len(token_ids), largest, lost)


@dataclass(slots=True)
class Tally:
    """Differences of many outputs.

    Attributes:
        tolerance: What counts as rounding, in nats.
        differences: One for each output.
        wrong: What was compared, and its difference, where that is more than rounding.
    """

    tolerance: float = TOLERANCE
    differences: list[Difference] = field(default_factory=list)
    wrong: list[tuple[str, Difference]] = field(default_factory=list)

    def add(self, what: str, difference: Difference) -> None:
        """Counts one output; `what` names it should it be wrong."""
        self.differences.append(difference)
        if not difference.is_within(self.tolerance):
            self.wrong.append((what, difference))

    @property
    def num_outputs(self) -> int:
        """Outputs compared."""
        return len(self.differences)

    @property
    def num_steps(self) -> int:
        """Tokens compared."""
        return sum(difference.num_steps for difference in self.differences)

    @property
    def num_other_tokens(self) -> int:
        """Tokens that are not the reference's choice."""
        return sum(len(difference.lost) for difference in self.differences)

    @property
    def share_of_equal_tokens(self) -> float:
        """Share of all tokens that are the reference's choice."""
        return 1 - self.num_other_tokens / self.num_steps

    def num_within(self, tolerance: float) -> int:
        """Outputs that are within `tolerance` of the reference, in nats."""
        return sum(difference.is_within(tolerance) for difference in self.differences)

    def __str__(self) -> str:
        largest = max((difference.largest for difference in self.differences), default=0.0)
        return (
            f"{self.num_outputs - len(self.wrong)}/{self.num_outputs} equal, largest difference "
            f"{largest:.1e} ({self.num_within(TOLERANCE)} within {TOLERANCE:.0e}), "
            f"{self.num_other_tokens} of {self.num_steps} tokens differ"
        )
