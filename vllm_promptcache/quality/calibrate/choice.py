"""Which candidates are within the limits, and which of them is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vllm_promptcache.errors import ClientError
from vllm_promptcache.policies import EXACT, Policy
from vllm_promptcache.quality.calibrate.decision import decide, num_more_rows, verdict_of
from vllm_promptcache.quality.evaluate.bootstrap import Estimate
from vllm_promptcache.quality.evaluate.contenders import Contender, with_plain
from vllm_promptcache.quality.evaluate.summary import Result
from vllm_promptcache.quality.profile import Measured, VerdictName

# Points that a single answer can lose.
_WORST_LOSS = 100.0

_VERBS: Mapping[VerdictName, str] = {"fails": "is", "undecided": "may be"}


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
        objections: Why it does not pass, or why that is not known: one for each limit.
    """

    figures: Measured
    objections: tuple[str, ...]


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
    loss, kl = _loss(result.figures["difference"]), result.figures["divergence"]
    decisions = {
        f"loss %s above {limits.tolerance:g}": decide(
            loss, limits.tolerance, result.num_rows, worst=_WORST_LOSS
        ),
        f"KL %s above {limits.max_kl:g}": decide(kl, limits.max_kl, result.num_rows),
    }
    figures = Measured(
        policy=_candidate(result.policy),
        loss=loss.value,
        kl=kl.value,
        loss_interval=_interval(loss),
        kl_interval=_interval(kl),
        recomputed_share=result.figures["recomputed_share"].value,
        verdict=verdict_of(decisions.values()),
        num_more_rows=num_more_rows(list(decisions.values()), result.num_rows),
    )
    said = (text % _VERBS[d.verdict] for text, d in decisions.items() if d.verdict in _VERBS)
    return Verdict(figures, tuple(said))


def _loss(difference: Estimate) -> Estimate:
    """A difference to plain with its sign turned; not `-0.0` where nothing is lost."""
    if difference.low is None or difference.high is None:
        return Estimate(0.0 - difference.value, None, None)
    return Estimate(0.0 - difference.value, 0.0 - difference.high, 0.0 - difference.low)


def _interval(found: Estimate) -> tuple[float, float] | None:
    return None if found.low is None or found.high is None else (found.low, found.high)


def choose_policy(verdicts: Iterable[Verdict]) -> Policy:
    """The cheapest policy that passes, the first of several; `exact` if none does."""
    passed = [v.figures for v in verdicts if v.figures.verdict == "passes"]
    cheapest = min(passed, key=lambda figures: figures.recomputed_share, default=None)
    return EXACT if cheapest is None else cheapest.policy
