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
from vllm_promptcache.quality.profile import VerdictName

LIMITS = Limits(tolerance=1.0, max_kl=0.05)


def result(policy: str, difference: float, kl: float, share: float, half: float) -> Result:
    figures = {
        "difference": Estimate(difference, difference - half, difference + half),
        "divergence": Estimate(kl, kl - half / 100, kl + half / 100),
        "recomputed_share": Estimate(share, None, None),
    }
    return Result("made-up", "f1", policy, 400, figures)


def verdict(
    policy: str, difference: float = 0.0, kl: float = 0.0, share: float = 0.0, half: float = 0.5
) -> Verdict:
    return judge([result(policy, difference, kl, share, half)], LIMITS)[0]


@pytest.mark.parametrize(
    ("difference", "kl", "half", "found", "objections"),
    [
        (0.0, 0.0, 0.5, "passes", ()),
        (5.0, 0.04, 1.0, "passes", ()),
        (-0.5, 0.04, 0.5, "passes", ()),
        (-0.75, 0.04, 0.5, "undecided", ("loss may be above 1",)),
        (-1.25, 0.04, 0.5, "undecided", ("loss may be above 1",)),
        (-1.75, 0.04, 0.5, "fails", ("loss is above 1",)),
        (-0.25, 0.048, 0.5, "undecided", ("KL may be above 0.05",)),
        (-0.25, 0.06, 0.5, "fails", ("KL is above 0.05",)),
        (-0.75, 0.06, 0.5, "fails", ("loss may be above 1", "KL is above 0.05")),
    ],
)
def test_both_limits_hold_with_their_intervals(
    difference: float, kl: float, half: float, found: VerdictName, objections: tuple[str, ...]
) -> None:
    judged = verdict("isolated", difference, kl, half=half)
    assert judged.objections == objections
    assert judged.figures.verdict == found
    assert (judged.figures.num_more_rows is not None) == (found == "undecided")
    assert judged.figures.loss == -difference
    assert judged.figures.loss_interval == (-difference - half, -difference + half)
    assert judged.figures.kl_interval == (kl - half / 100, kl + half / 100)


def test_what_is_undecided_is_not_chosen() -> None:
    assert choose_policy([verdict("isolated", -0.9), verdict("anchored", share=0.5)]) == Policy(
        "anchored"
    )


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
