"""What is printed about candidates."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich.console import Console

from tests.quality.profiles import measured, profile
from vllm_promptcache.quality.calibrate.choice import Verdict
from vllm_promptcache.quality.calibrate.report import print_choice, print_verdicts
from vllm_promptcache.quality.evaluate.bootstrap import Estimate

UNDECIDED = measured(
    "anchored",
    "undecided",
    loss=0.5,
    loss_interval=(-1.0, 2.0),
    kl=0.04,
    kl_interval=(0.03, 0.06),
    num_more_rows=1,
)


def test_a_candidate_that_is_undecided_says_what_would_decide() -> None:
    out = Console(file=StringIO(), width=160)
    verdicts = [
        Verdict(measured("isolated", "fails", loss=3.0), ("loss is above 1",)),
        Verdict(UNDECIDED, ("loss may be above 1", "KL may be above 0.05")),
    ]
    print_verdicts(out, verdicts, Estimate(50.0, None, None))
    print_choice(out, profile(measured=(UNDECIDED,), default="exact"), Path("p.json"))
    assert isinstance(out.file, StringIO)
    text = " ".join(out.file.getvalue().split())
    assert "isolated 3.0 0.000 0.0% fails: loss is above 1 anchored" in text
    assert "anchored 0.5 (-1.0, 2.0) 0.040 (0.030, 0.060) 0.0% undecided: loss may be" in text
    assert "KL may be above 0.05; about 1 more row would decide" in text
    assert "What is undecided is not served" in text
