"""Tokens of reused modules that are computed again in the context of the prompt.

A module that was encoded alone has never seen what stands before it. Computing some of its tokens
again, behind what lies before them, gives back part of that (CacheBlend, EPIC).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from operator import attrgetter

from vllm_promptcache.plan.parts import PlannedModule
from vllm_promptcache.policies import Repair
from vllm_promptcache.sequence.runs import Run


def repaired(modules: Sequence[PlannedModule], wanted: Repair | None) -> list[PlannedModule]:
    """Says what is still reused of each module.

    A module is left as it is if it has seen all that lies before it.

    Args:
        modules: Modules of a prompt.
        wanted: What the prompt asks for, None for what the modules' schema says.
    """
    repairs = [wanted or planned.layout.policy.repair for planned in modules]
    if all(repair.kind == "none" for repair in repairs):
        return list(modules)
    complete = _complete(modules)
    asked = [p for p, repair in zip(modules, repairs, strict=True) if repair.kind == "query"]
    factor = _factor(asked, complete)
    return [
        planned if planned.layout.index in complete else _repaired(planned, repair, factor)
        for planned, repair in zip(modules, repairs, strict=True)
    ]


def _factor(asked: Sequence[PlannedModule], complete: Collection[int]) -> float:
    """How many times a share of all tokens is that of the tokens that can be repaired."""
    num_tokens = sum(p.num_tokens for p in asked)
    return num_tokens / max(1, sum(p.num_tokens for p in asked if p.layout.index not in complete))


def _complete(modules: Iterable[PlannedModule]) -> Collection[int]:
    """Indexes of modules that were encoded behind what lies before them, and nothing else."""
    reused = sorted((m for m in modules if m.reused), key=attrgetter("first_position"))
    complete, before = set(), set[int]()
    for planned in reused:
        context = {span.index for span in planned.layout.context}
        if before == context and planned.layout.relocation is None:
            complete.add(planned.layout.index)
        before.add(planned.layout.index)
    return complete


def _repaired(planned: PlannedModule, repair: Repair, factor: float) -> PlannedModule:
    match repair.kind:
        case "none":
            return planned
        case "head":
            return planned.without([Run(0, min(repair.amount, planned.num_tokens))])
        case "query":
            # Which ones, the engine chooses.
            num_tokens = round(planned.num_tokens * repair.amount / 100 * factor)
            return replace(planned, num_attended=min(num_tokens, planned.num_tokens))
