"""What a request's client and the metrics are told about its modules."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Account:
    """What is kept of a request for reports.

    Attributes:
        schema: Name of its prompt's schema; empty for a request of the scheduler's own.
        modules: Path of the module of each span of its plan, and what it is read as; None if nobody
            wants to know.
        span_numbers: For each span that it reads its number in the plan; None if it reads all. Of
            a prompt that was repaired nothing of a span may be left.
        since: When it arrived, in seconds of the monotonic clock.
        is_promoted: Whether it reads a chain in place of modules that were encoded alone.
        num_links: Links of its chain that it reads; if these are not all, modules that were encoded
            alone are behind them.
        has_waited: Whether a module was missing when it was looked for.
        encoded_keys: Modules it found missing, so that they were encoded for it, by their keys in
            the store.
        repaired: Numbers of the spans of which tokens are computed again, since the prompt attends
            to them.
        cold: The spans that it computes, since their modules were nowhere: tokens by number in the
            plan.
    """

    schema: str = ""
    modules: Sequence[tuple[str, str]] | None = None
    span_numbers: Sequence[int] | None = None
    since: float = field(default_factory=time.monotonic)
    is_promoted: bool = False
    num_links: int = 0
    has_waited: bool = False
    encoded_keys: set[bytes] = field(default_factory=set)
    repaired: set[int] = field(default_factory=set)
    cold: dict[int, int] = field(default_factory=dict)

    def computes(self, number: int, num_tokens: int) -> None:
        """Takes note of a cold span, by its number among those that it reads so far."""
        self.cold[self._in_plan(number)] = num_tokens

    def repairs(self, numbers: Iterable[int]) -> None:
        """Takes note of repaired spans, by their numbers among those that it reads so far."""
        self.repaired.update(map(self._in_plan, numbers))

    def still_reads(self, numbers: Collection[int]) -> None:
        """Takes note of the spans that are left, by their numbers among those it reads so far."""
        self.span_numbers = list(map(self._in_plan, numbers))

    def _in_plan(self, number: int) -> int:
        return number if self.span_numbers is None else self.span_numbers[number]
