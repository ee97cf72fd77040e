"""Tokens of reused modules that are computed again in the context of the prompt.

A module that was encoded alone has never seen what stands before it. Computing some of its tokens
again, behind all modules of the prompt, gives back part of that (CacheBlend, EPIC).
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from vllm_promptcache.plan.prompt_plan import PlannedModule
from vllm_promptcache.plan.sequence import Run
from vllm_promptcache.pml.ast import Repair


def repaired(
    modules: Sequence[PlannedModule], wanted: Repair | None, block_size: int
) -> list[PlannedModule]:
    """Says what is still reused of each module.

    The module at the lowest positions is left as it is: there is nothing that it has not seen.

    Args:
        modules: Modules of a prompt.
        wanted: What the prompt asks for, None for what the modules' schema says.
        block_size: Tokens in a KV cache block.
    """
    repairs = [wanted or planned.layout.repair for planned in modules]
    if all(repair.kind == "none" for repair in repairs):
        return list(modules)
    first = min((m for m in modules if m.reused), key=attrgetter("first_position"), default=None)
    return [
        planned if planned is first else planned.without(_left_out(planned, repair, block_size))
        for planned, repair in zip(modules, repairs, strict=True)
    ]


def _left_out(planned: PlannedModule, repair: Repair, block_size: int) -> list[Run]:
    """Indexes of the kept tokens that a repair takes out, of a module reused from its start on."""
    num_tokens = planned.num_tokens
    amount = min(repair.amount, num_tokens)
    match repair.kind:
        case "none":
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
