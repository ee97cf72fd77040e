"""A prompt that begins with promoted modules: the first links of its chain, or all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from vllm_promptcache.sequence.codec import Plan
from vllm_promptcache.sequence.runs import Run, count, locate, merge_runs
from vllm_promptcache.sequence.spans import ModuleSpan, SequencePlan


@dataclass(frozen=True, slots=True)
class PromotedPrompt:
    """What a prompt reads if the first links of its chain are there.

    Attributes:
        sequence: The links, then what the plan reads of modules behind them. If all links are
            there, nothing else is read.
        numbers: The number in the plan of each span behind the links.
        attended: As `Plan.attended`, for all spans.
    """

    sequence: SequencePlan
    numbers: tuple[int, ...]
    attended: tuple[int, ...]

    @staticmethod
    def of(plan: Plan, num_links: int) -> PromotedPrompt:
        """Puts links, at least one, in the place of modules that were encoded alone.

        Raises:
            PlanError: The plan contradicts itself.
        """
        links = plan.links[:num_links]
        if num_links == len(plan.links):
            return PromotedPrompt(plan.promoted, (), ())
        # A chain leaves out nothing before its end.
        rest = dict(_behind(plan.spans, links[-1].positions[-1].end))
        attended = [0] * num_links
        for number, span in rest.items() if plan.attended else ():
            attended.append(min(plan.attended[number], span.num_tokens))
        return PromotedPrompt(
            plan.reading((*links, *rest.values())),
            tuple(rest),
            tuple(attended) if any(attended) else (),
        )


def _behind(spans: Sequence[ModuleSpan], position: int) -> Iterator[tuple[int, ModuleSpan]]:
    """What spans read from a position on, by their numbers; those of which nothing is left out."""
    for number, span in enumerate(spans):
        pieces = (_from(run, position - start) for run, start in locate(span.positions, span.runs))
        runs = merge_runs(pieces)
        if count(runs):
            yield number, msgspec.structs.replace(span, runs=runs)


def _from(run: Run, num_before: int) -> Run:
    """A run without its first integers; empty if there are not more."""
    num_left_out = min(max(num_before, 0), run.num_tokens)
    return Run(run.start + num_left_out, run.num_tokens - num_left_out)
