"""Whether a mean over some rows is within a limit, or only happens to be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vllm_promptcache.quality.evaluate.bootstrap import Estimate
from vllm_promptcache.quality.profile import VerdictName

MAX_NUM_MORE_ROWS = 1_000_000
"""More are not told: nobody has them."""

# What none of n rows shows may still be so in 3 of n, with 95 %.
_RULE_OF_THREE = 3.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What rows say of a limit.

    Attributes:
        verdict: Whether it holds.
        num_rows: Rows with which this would be decided, about; infinite if no number would do.
        seems_above: Whether the mean is above the limit, wherever its interval is.
    """

    verdict: VerdictName
    num_rows: float
    seems_above: bool


def decide(found: Estimate, limit: float, num_rows: int, *, worst: float = 0.0) -> Decision:
    """Compares the interval of a mean with a limit.

    An interval is narrower by the square root of the number of rows.

    Args:
        found: The mean over rows.
        limit: What it may be.
        num_rows: How many rows there are.
        worst: What it may be for a single row. Rows that are all alike make an empty interval, so
            that few of them could not have shown one that is as bad as this. 0 for no such limit.
    """
    seems_above = found.value > limit
    if found.low is None or found.high is None:
        return Decision("undecided", math.inf, seems_above)
    if found.low > limit:
        return Decision("fails", num_rows, seems_above)
    half = found.value - found.low if seems_above else found.high - found.value
    needed = num_rows * _ratio(half, abs(found.value - limit)) ** 2
    if not seems_above:
        needed = max(needed, _ratio(_RULE_OF_THREE * worst, limit))
    is_within = not seems_above and needed <= num_rows
    return Decision("passes" if is_within else "undecided", needed, seems_above)


def _ratio(part: float, whole: float) -> float:
    if part <= 0:
        return 0.0
    return part / whole if whole else math.inf


def verdict_of(decisions: Iterable[Decision]) -> VerdictName:
    """What is said where several limits are to hold."""
    verdicts = {decision.verdict for decision in decisions}
    if "fails" in verdicts:
        return "fails"
    return "undecided" if "undecided" in verdicts else "passes"


def num_more_rows(decisions: Sequence[Decision], num_rows: int) -> int | None:
    """About how many more rows would decide; None where nothing is undecided, or none would do."""
    if verdict_of(decisions) != "undecided":
        return None
    undecided = [decision for decision in decisions if decision.verdict == "undecided"]
    above = [decision.num_rows for decision in undecided if decision.seems_above]
    # One limit that does not hold is enough.
    needed = min(above) if above else max(decision.num_rows for decision in undecided)
    if needed - num_rows > MAX_NUM_MORE_ROWS:
        return None
    return max(1, math.ceil(needed) - num_rows)
