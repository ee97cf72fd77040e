"""Which tokens of reused modules are computed again: the policies that `reuse_study` compares.

A policy is written `[repair[|repair]@]base[+option]`. The base says what a module's tokens saw when
their keys and values were computed:

    plain     everything before them, as in a prefill
    isolated  the module alone
    anchored  the root and the module
    sink      the first four tokens of the root, at the first positions, and the module
    neutral   a short prose text, at the positions before the module, and the module
    primed    the root, as much of the primer as there are positions, and the module

A repair chooses tokens to compute again. The base may be left out and is then `isolated`:

    head:K, tail:K            the first K tokens of each module; the last K of each
    random:R, spread:R        R percent of all tokens, or whole blocks spread evenly
    deviation:R, query:R      the tokens whose keys and values of the second layer differ the most
                              from a prefill; those that the question attends to the most
    early-query:R             as query, but only by the first half of the layers
    last:R                    as query, but by the last three tokens of the prompt
    block-deviation:R, block-query:R, block-early-query:R, block-last:R
                              the same for whole blocks, by the sum over their tokens
    all                       every token (what is left is the error of the arithmetic)

Options: `causal` hides cached tokens from repaired ones at lower positions. `weight=W` multiplies
the attention of the tail and the answer to the modules' tokens by W, before normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random

import torch

BASES = ("plain", "isolated", "anchored", "sink", "neutral", "primed")
# Under these the first module has seen all that lies before it, so it is never repaired.
FIRST_IS_COMPLETE = ("anchored", "primed")
BLOCK_SIZE = 16

Scores = Callable[[str], torch.Tensor]
"""A number for each position of the prompt, by the name of a measure: "deviation", "query", ..."""


@dataclass(frozen=True)
class Policy:
    """How modules are encoded and which of their tokens are repaired."""

    name: str
    base: str
    repairs: tuple[tuple[str, int], ...] = ()
    is_causal: bool = False
    weight: float = 1.0

    @classmethod
    def parse(cls, name: str) -> Policy:
        """The policy with this name; the module's docstring has the syntax.

        Raises:
            ValueError: If the base or an option is not known.
        """
        body, *options = name.split("+")
        repair, _, base = body.rpartition("@")
        if not repair and base not in BASES:
            repair, base = base, "isolated"
        if base not in BASES:
            raise ValueError(f"unknown base in policy {name!r}")
        parts = (part.partition(":") for part in repair.split("|") if part)
        repairs = tuple((kind, int(amount or 0)) for kind, _, amount in parts)
        is_causal, weight = False, 1.0
        for option in options:
            key, _, value = option.partition("=")
            if key not in ("causal", "weight"):
                raise ValueError(f"unknown option in policy {name!r}")
            is_causal |= key == "causal"
            weight = float(value) if key == "weight" else weight
        return cls(name, base, repairs, is_causal, weight)

    def repaired(self, modules: Sequence[range], scores: Scores, seed: str) -> list[int]:
        """The positions of the tokens to compute again, in ascending order."""
        chosen: set[int] = set()
        candidates = modules[1:] if self.base in FIRST_IS_COMPLETE else modules
        for kind, amount in self.repairs:
            budget = round(sum(map(len, modules)) * amount / 100)
            chosen.update(_choose(kind, amount, budget, candidates, scores, seed))
        return sorted(chosen)


def _choose(
    kind: str, amount: int, budget: int, modules: Sequence[range], scores: Scores, seed: str
) -> Iterable[int]:
    """The positions that one repair chooses.

    Raises:
        ValueError: If there is no such repair.
    """
    positions = [position for module in modules for position in module]
    match kind:
        case "all":
            return positions
        case "head":
            return [position for module in modules for position in module[:amount]]
        case "tail":
            return [position for module in modules for position in module[-amount:]]
        case "random":
            return Random(seed).sample(positions, min(budget, len(positions)))
        case "spread":
            return _spread(modules, amount)
        case "deviation" | "query" | "early-query" | "last":
            values = scores(kind)
            return sorted(positions, key=lambda position: -float(values[position]))[:budget]
        case "block-deviation" | "block-query" | "block-early-query" | "block-last":
            return _best_blocks(modules, scores(kind.removeprefix("block-")), budget)
    raise ValueError(f"unknown repair {kind!r}")


def _blocks(modules: Sequence[range]) -> list[range]:
    """The blocks of all modules; a module's first begins where the module does."""
    return [
        module[first : first + BLOCK_SIZE]
        for module in modules
        for first in range(0, len(module), BLOCK_SIZE)
    ]


def _spread(modules: Sequence[range], percent: int) -> list[int]:
    """Blocks at even distances. Counted through all modules, so that the share is right."""
    chosen = [
        block
        for index, block in enumerate(_blocks(modules))
        if (index * percent + 50) // 100 < ((index + 1) * percent + 50) // 100
    ]
    return [position for block in chosen for position in block]


def _best_blocks(modules: Sequence[range], values: torch.Tensor, budget: int) -> list[int]:
    """The blocks with the largest sums, as long as at least half of the next is in the budget."""
    chosen: list[int] = []
    blocks = _blocks(modules)
    for block in sorted(blocks, key=lambda block: -float(values[block.start : block.stop].sum())):
        if len(chosen) + len(block) / 2 > budget:
            break
        chosen += block
    return chosen
