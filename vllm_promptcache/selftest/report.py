"""What is printed: short enough for an issue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm_promptcache.selftest.answers import Distance
from vllm_promptcache.selftest.engine import EngineReport
from vllm_promptcache.selftest.prompts import make_groups

# Nats that are between means of the same in float32; other types bring noise of their own.
TOLERANCE = 2e-4


@dataclass(frozen=True, slots=True)
class Check:
    """A comparison and how it went.

    Attributes:
        engine: How the engine ran.
        group: The prompts.
        what: What was compared.
        distance: How far it is apart.
        noise: How far what computes the same in another order is apart.
    """

    engine: str
    group: str
    what: str
    distance: Distance
    noise: Distance

    @property
    def has_passed(self) -> bool:
        """Whether the distance is rounding."""
        return self.distance.is_within(self.noise, TOLERANCE)


def title_of(report: EngineReport) -> str:
    """How an engine ran, in few words."""
    facts = report.facts
    return f"{facts['model runner']}, {facts['scheduling']}, graphs {facts['CUDA graphs']}"


def check_engines(reports: Sequence[EngineReport]) -> Iterator[Check]:
    """Compares answers within each engine, and those of each engine with the first one's."""
    is_exact = {group.name: group.is_exact for group in make_groups()}
    first, *_ = reports
    for report in reports:
        for group, of_first in zip(report.groups, first.groups, strict=True):
            noise = Distance.between(group.plain, group.plain_again)
            pairs = {"warm to cold": (group.warm, group.cold)}
            if is_exact[group.name]:
                pairs["modules to a plain prefill"] = (group.warm, group.plain)
            if report is not first:
                pairs["modules to the first engine's"] = (group.warm, of_first.warm)
                pairs["plain to the first engine's"] = (group.plain, of_first.plain)
            for what, answers in pairs.items():
                distance = Distance.between(*answers)
                yield Check(title_of(report), group.name, what, distance, noise)
