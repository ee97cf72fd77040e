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
    title = f"plain prefill scores {plain.value:.1f}; loss with its 95 % interval"
    table = Table("policy", title=title, title_justify="left", box=SIMPLE_HEAD)
    for header in ("loss", "KL", "recomputed"):
        table.add_column(header, justify="right")
    table.add_column("verdict")
    for verdict in verdicts:
        table.add_row(*_cells(verdict))
    table.add_row(str(EXACT), "0.0", "0.000", "", "passes: it equals a plain prefill (not run)")
    console.print(table)


def _cells(verdict: Verdict) -> tuple[str, ...]:
    figures, difference = verdict.figures, verdict.difference
    loss = f"{figures.loss:.1f}"
    if difference.low is not None and difference.high is not None:
        loss += f" ({0 - difference.high:.1f}, {0 - difference.low:.1f})"
    return (
        str(figures.policy),
        loss,
        f"{figures.kl:.3f}",
        f"{figures.recomputed_share:.1%}",
        "passes" if verdict.passes else f"fails: {', '.join(verdict.objections)}",
    )


def print_choice(console: Console, profile: Profile, path: Path) -> None:
    """Says what was chosen, and what to do with it."""
    if profile.passed:
        console.print(f"Chosen: {profile.default}, the cheapest that passes.", highlight=False)
    else:
        console.print("Chosen: exact, since no candidate passes.", highlight=False)
    rows = f"{profile.num_rows} row{'s' if profile.num_rows > 1 else ''}"
    console.print(f"Written to {path}, measured on {rows}. Use it with", highlight=False)
    option = f"    vllm serve ... --enable-prompt-modules --prompt-modules-profile {path}"
    console.print(option, highlight=False, soft_wrap=True)
