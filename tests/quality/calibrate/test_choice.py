"""Which policy is chosen, from made-up figures."""

from __future__ import annotations

import pytest

from vllm_promptcache.errors import ClientError
from vllm_promptcache.policies import EXACT, Policy, Repair
from vllm_promptcache.quality.calibrate.choice import (
    Limits,
    Verdict,
    choose_policy,
    judge,
    read_candidates,
)
from vllm_promptcache.quality.evaluate.bootstrap import Estimate
from vllm_promptcache.quality.evaluate.summary import Result

LIMITS = Limits(tolerance=1.0, max_kl=0.05)


def result(policy: str, difference: float, kl: float, share: float) -> Result:
    figures = {
        "difference": Estimate(difference, difference - 1, difference + 1),
        "divergence": Estimate(kl, None, None),
        "recomputed_share": Estimate(share, None, None),
    }
    return Result("made-up", "f1", policy, 24, figures)


def verdict(policy: str, difference: float = 0.0, kl: float = 0.0, share: float = 0.0) -> Verdict:
    return judge([result(policy, difference, kl, share)], LIMITS)[0]


@pytest.mark.parametrize(
    ("difference", "kl", "objections"),
    [
        (0.0, 0.0, ()),
        (5.0, 0.05, ()),
        (-1.0, 0.05, ()),
        (-1.5, 0.05, ("loss above 1",)),
        (-1.0, 0.06, ("KL above 0.05",)),
        (-1.5, 0.06, ("loss above 1", "KL above 0.05")),
    ],
)
def test_both_limits_hold(difference: float, kl: float, objections: tuple[str, ...]) -> None:
    found = verdict("isolated", difference, kl)
    assert found.objections == objections
    assert found.passes is not bool(objections)
    assert found.figures.loss == -difference


def test_the_cheapest_that_passes_is_chosen() -> None:
    verdicts = [
        verdict("isolated", -4.0),
        verdict("anchored+query:15", share=0.15),
        verdict("anchored+head:16", share=0.1),
        verdict("isolated+head:16", share=0.1),
    ]
    assert choose_policy(verdicts) == Policy("anchored", Repair("head", 16))
    assert choose_policy(verdicts[::-1]) == Policy("isolated", Repair("head", 16))


def test_exact_is_the_last_resort() -> None:
    assert choose_policy([verdict("isolated", kl=1.0), verdict("anchored", -2.0)]) == EXACT


def test_candidates_are_read_and_named_the_one_way() -> None:
    contenders = read_candidates("isolated+none, anchored+head:16,isolated")
    assert [contender.name for contender in contenders] == ["plain", "isolated", "anchored+head:16"]


@pytest.mark.parametrize(
    "name", ["plain", "exact", "scaffold", "default", "fast", "", "isolated+head", "exact+head:1"]
)
def test_other_names_are_no_candidates(name: str) -> None:
    with pytest.raises(ClientError, match="is no candidate"):
        read_candidates(f"isolated,{name}")
