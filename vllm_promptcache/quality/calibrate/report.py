"""What calibration has found, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vllm_promptcache.policies import EXACT
from vllm_promptcache.quality.calibrate.choice import Verdict
from vllm_promptcache.quality.evaluate.bootstrap import Estimate
from vllm_promptcache.quality.profile import Profile


def print_verdicts(console: Console, verdicts: Sequence[Verdict], plain: Estimate) -> None:
    """Prints the table of candidates.

    Args:
        console: Where to.
        verdicts: The candidates.
        plain: Score of a plain prefill.
    """
    title = f"plain prefill scores {plain.value:.1f}; loss and KL with their 95 % intervals"
    table = Table("policy", title=title, title_justify="left", box=SIMPLE_HEAD)
    for header in ("loss", "KL", "recomputed"):
        table.add_column(header, justify="right")
    table.add_column("verdict")
    for verdict in verdicts:
        table.add_row(*_cells(verdict))
    table.add_row(str(EXACT), "0.0", "0.000", "", "passes: it equals a plain prefill (not run)")
    console.print(table)


def _cells(verdict: Verdict) -> tuple[str, ...]:
    figures = verdict.figures
    return (
        str(figures.policy),
        _with_interval(figures.loss, figures.loss_interval, ".1f"),
        _with_interval(figures.kl, figures.kl_interval, ".3f"),
        f"{figures.recomputed_share:.1%}",
        _sentence(verdict),
    )


def _with_interval(value: float, interval: tuple[float, float] | None, form: str) -> str:
    if interval is None:
        return f"{value:{form}}"
    return f"{value:{form}} ({interval[0]:{form}}, {interval[1]:{form}})"


def _sentence(verdict: Verdict) -> str:
    figures = verdict.figures
    if figures.verdict == "passes":
        return "passes"
    text = f"{figures.verdict}: {', '.join(verdict.objections)}"
    if figures.verdict == "undecided":
        text += f"; {figures.more_rows} would decide"
    return text


def print_choice(console: Console, profile: Profile, path: Path) -> None:
    """Says what was chosen, and what to do with it."""
    if profile.passed:
        console.print(f"Chosen: {profile.default}, the cheapest that passes.", highlight=False)
    else:
        console.print("Chosen: exact, since no candidate passes.", highlight=False)
    if any(measured.verdict == "undecided" for measured in profile.measured):
        text = "What is undecided is not served: a schema that asks for it is served exactly."
        console.print(text, highlight=False)
    rows = f"{profile.num_rows} row{'s' if profile.num_rows > 1 else ''}"
    console.print(f"Written to {path}, measured on {rows}. Use it with", highlight=False)
    option = f"    vllm serve ... --enable-prompt-modules --prompt-modules-profile {path}"
    console.print(option, highlight=False, soft_wrap=True)
