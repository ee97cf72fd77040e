"""Which candidates are within the limits, and which of them is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vllm_promptcache.errors import ClientError
from vllm_promptcache.policies import EXACT, Policy
from vllm_promptcache.quality.evaluate.bootstrap import Estimate
from vllm_promptcache.quality.evaluate.contenders import Contender, with_plain
from vllm_promptcache.quality.evaluate.summary import Result
from vllm_promptcache.quality.profile import Measured


@dataclass(frozen=True, slots=True)
class Limits:
    """What a policy may cost.

    Attributes:
        tolerance: Points of score below a plain prefill.
        max_kl: KL(plain || policy) of the first token, in nats.
    """

    tolerance: float
    max_kl: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """A candidate with what speaks against it.

    Attributes:
        figures: What was measured.
        difference: Score to that of plain, with its interval.
        objections: Why it does not pass, one for each limit.
    """

    figures: Measured
    difference: Estimate
    objections: tuple[str, ...]

    @property
    def passes(self) -> bool:
        """Whether it is within both limits."""
        return not self.objections


def read_candidates(names: str) -> tuple[Contender, ...]:
    """Reads names between commas; `plain` comes first, for comparison.

    Raises:
        ClientError: A name is not that of a policy that a schema can say, or is `exact`.
    """
    return with_plain(Contender.of(_candidate(name.strip())) for name in names.split(","))


def _candidate(name: str) -> Policy:
    policy = Policy.parse(name)
    if policy is None or policy == EXACT:
        message = f"{name!r} is no candidate"
        hint = "name isolated, anchored or primed, alone or with a repair, such as primed+query:15"
        raise ClientError(message, hint)
    return policy


def judge(results: Iterable[Result], limits: Limits) -> list[Verdict]:
    """Compares candidates with the limits, in their order."""
    return [_judge(result, limits) for result in results]


def _judge(result: Result, limits: Limits) -> Verdict:
    difference = result.figures["difference"]
    figures = Measured(
        policy=_candidate(result.policy),
        # Not `-0.0` where nothing is lost.
        loss=0.0 - difference.value,
        kl=result.figures["divergence"].value,
        recomputed_share=result.figures["recomputed_share"].value,
    )
    objections = []
    if figures.loss > limits.tolerance:
        objections.append(f"loss above {limits.tolerance:g}")
    if figures.kl > limits.max_kl:
        objections.append(f"KL above {limits.max_kl:g}")
    return Verdict(figures, difference, tuple(objections))


def choose_policy(verdicts: Sequence[Verdict]) -> Policy:
    """The cheapest policy that passes, the first of several; `exact` if none does."""
    passed = [verdict.figures for verdict in verdicts if verdict.passes]
    cheapest = min(passed, key=lambda figures: figures.recomputed_share, default=None)
    return EXACT if cheapest is None else cheapest.policy
