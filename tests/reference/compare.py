"""How far an engine's output is from the reference, and the sum over many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.reference.model import ReferenceOutput

# The largest difference of log-probabilities in float32 that counts as rounding.
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Difference:
    """One output against the reference, every step behind the engine's own tokens before it.

    Attributes:
        largest: Largest difference of log-probabilities, in nats, over all steps.
        num_steps: Tokens compared.
        num_equal: Tokens that are the reference's choice.
        num_ties: Tokens that are not, but as probable within `TOLERANCE`.
    """

    largest: float
    num_steps: int
    num_equal: int
    num_ties: int

    @property
    def is_equal(self) -> bool:
        """Whether the output is right: each token the best or tied with it, and rounding only."""
        return self.largest <= TOLERANCE and self.num_equal + self.num_ties == self.num_steps

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
        others = [
            (step, best, chosen)
            for step, best, chosen in zip(
                reference.logprobs, reference.token_ids, token_ids, strict=True
            )
            if best != chosen
        ]
        num_ties = sum(
            (step[best] - step[chosen]).item() < TOLERANCE for step, best, chosen in others
        )
        return Difference(largest, len(token_ids), len(token_ids) - len(others), num_ties)


@dataclass(slots=True)
class Tally:
    """Differences of many outputs.

    Attributes:
        wrong: What was compared, and its difference, where the output is not right.
    """

    num_outputs: int = 0
    num_ties: int = 0
    num_steps: int = 0
    num_equal_steps: int = 0
    largest: float = 0.0
    wrong: list[tuple[str, Difference]] = field(default_factory=list)

    def add(self, what: str, difference: Difference) -> None:
        """Counts one output; `what` names it should it be wrong."""
        self.num_outputs += 1
        self.num_ties += difference.num_ties
        self.num_steps += difference.num_steps
        self.num_equal_steps += difference.num_equal
        self.largest = max(self.largest, difference.largest)
        if not difference.is_equal:
            self.wrong.append((what, difference))

    @property
    def share_of_equal_tokens(self) -> float:
        """Share of all tokens, behind the engine's own before them, that the reference chooses."""
        return self.num_equal_steps / self.num_steps

    def of_tokens(self) -> str:
        """The numbers that mean something where outputs cannot be equal (bfloat16)."""
        return (
            f"{self.num_equal_steps}/{self.num_steps} tokens equal, "
            f"largest difference {self.largest:.1e}"
        )

    def __str__(self) -> str:
        num_equal = self.num_outputs - len(self.wrong)
        return (
            f"{num_equal}/{self.num_outputs} equal, largest difference {self.largest:.1e}, "
            f"{self.num_ties} near ties in {self.num_steps} tokens"
        )
