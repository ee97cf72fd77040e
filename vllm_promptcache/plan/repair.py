"""Tokens of reused modules that are computed again in the context of the prompt.

A module that was encoded alone has never seen what stands before it. Computing some of its tokens
again, behind what lies before them, gives back part of that (CacheBlend, EPIC).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from operator import attrgetter

from vllm_promptcache.plan.prompt_plan import PlannedModule
from vllm_promptcache.pml.ast import Repair
from vllm_promptcache.sequence.sequence import Run


def repaired(
    modules: Sequence[PlannedModule], wanted: Repair | None, block_size: int
) -> list[PlannedModule]:
    """Says what is still reused of each module.

    A module is left as it is if it has seen all that lies before it.

    Args:
        modules: Modules of a prompt.
        wanted: What the prompt asks for, None for what the modules' schema says.
        block_size: Tokens in a KV cache block.
    """
    repairs = [wanted or planned.layout.repair for planned in modules]
    if all(repair.kind == "none" for repair in repairs):
        return list(modules)
    complete = _complete(modules)
    asked = [p for p, repair in zip(modules, repairs, strict=True) if repair.kind == "query"]
    factor = _factor(asked, complete)
    return [
        planned
        if planned.layout.index in complete
        else _repaired(planned, repair, block_size, factor)
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


def _repaired(
    planned: PlannedModule, repair: Repair, block_size: int, factor: float
) -> PlannedModule:
    if repair.kind == "query":
        # Which ones, the engine chooses.
        num_tokens = round(planned.num_tokens * repair.amount / 100 * factor)
        return replace(planned, num_attended=min(num_tokens, planned.num_tokens))
    return planned.without(_left_out(planned, repair, block_size))


def _left_out(planned: PlannedModule, repair: Repair, block_size: int) -> list[Run]:
    """Indexes of the kept tokens that a repair takes out, of a module reused from its start on."""
    num_tokens = planned.num_tokens
    amount = min(repair.amount, num_tokens)
    match repair.kind:
        case "none" | "query":
            return []
        case "head":
            return [Run(0, amount)]
        case "tail":
            return [Run(num_tokens - amount, amount)]
        case "spread":
            return _spread(num_tokens, repair.amount / 100, block_size)


def _spread(num_tokens: int, share: float, block_size: int) -> list[Run]:
    """Whole blocks at even distances: the others can still be mapped by reference."""
    num_blocks = num_tokens // block_size
    num_repaired = round(num_blocks * share)
    middles = ((2 * i + 1) * num_blocks // (2 * num_repaired) for i in range(num_repaired))
    return [Run(block * block_size, block_size) for block in middles]
