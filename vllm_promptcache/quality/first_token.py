"""How far reuse moves the distribution of the first token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NUM_TOKENS = 100
"""Tokens whose probabilities are compared; vLLM tells those of chosen tokens for up to 128."""

# What is left beside them is a difference of numbers near 1, rounded to float32.
_FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The first token's distribution in a plain prefill.

    Attributes:
        token_ids: The `NUM_TOKENS` likeliest tokens.
        logprobs: Their natural log-probabilities.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @classmethod
    def of(cls, logprobs: Mapping[int, float]) -> FirstToken:
        """Keeps the likeliest of these tokens."""
        kept = sorted(logprobs, key=lambda token_id: -logprobs[token_id])[:NUM_TOKENS]
        return cls(tuple(kept), tuple(logprobs[token_id] for token_id in kept))

    def divergence(self, logprobs: Mapping[int, float]) -> float:
        """KL(plain || other) in nats, where all tokens but `token_ids` count as one.

        So it is a lower bound of that over the whole vocabulary, and close to it where the plain
        prefill leaves these other tokens little.

        Args:
            logprobs: Log-probability of each of `token_ids` by the other policy.
        """
        plain = _with_rest(self.logprobs)
        other = _with_rest([logprobs[token_id] for token_id in self.token_ids])
        terms = (math.exp(p) * (p - q) for p, q in zip(plain, other, strict=True))
        return max(0.0, math.fsum(terms))


def _with_rest(logprobs: Sequence[float]) -> list[float]:
    rest = 1.0 - math.fsum(map(math.exp, logprobs))
    return [*logprobs, math.log(max(rest, _FLOOR))]
