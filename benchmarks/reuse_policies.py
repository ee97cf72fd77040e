"""Which tokens of reused modules are computed again: the policies that `reuse_study` compares.

A policy is written `[repair[|repair]@]base[+option]`. The base says what stood before a module when
its keys and values were computed; it was then moved to its place in the prompt, the keys rotated:

    plain     everything before it, as in a prefill
    isolated  nothing
    sink      the first four tokens of the root
    neutral   a short prose text
    anchored  the root
    bare1, bare2, bare3, form1, form2, form3, siblings1, siblings2
              the root and a primer (`reuse_primers`): made-up articles, of which the second set is
              the engine's, as they are or in the form of the documents, with heading and title;
              documents of other rows, cut to 110 tokens
    oracle:K  the root and what stands before this place in another row: the mean over K rows
    form1|form2 and the like
              the mean of the keys and values behind each of these primers

Under these but the first four, the module that stands first is encoded behind the root alone and
hence exact, unless the option `alike` is given.

A repair chooses tokens to compute again. The base may be left out and is then `isolated`:

    head:K, tail:K            the first K tokens of each module; the last K of each
    random:R, spread:R        R percent of all tokens, or whole blocks spread evenly
    deviation:R, query:R      the tokens whose keys and values of the second layer differ the most
                              from a prefill; those that the question attends to the most
    early-query:R             as query, but only by the first half of the layers
    last:R                    as query, but by the last three tokens of the prompt
    block-deviation:R, block-query:R, block-early-query:R, block-last:R
                              the same for whole blocks, by the sum over their tokens
    block-prepared:R          blocks that are known before any question, some of each module: those
                              that generic questions, asked of it alone, attend to the most
    all                       every token (what is left is the error of the arithmetic)

Options: `alike` encodes the first module as the others; `norm` gives mean keys the mean norm of
those that they are the mean of. `causal` hides cached tokens from repaired ones at lower positions.
`weight=W` multiplies the attention of the tail and the answer to the modules' tokens by W, before
normalisation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random

import torch

from benchmarks.reuse_texts import SETS

UNPRIMED = ("isolated", "sink", "neutral", "anchored")
BARE, FORM = "bare", "form"
MADE_UP = tuple(form + number for form in (BARE, FORM) for number in SETS)
SIBLINGS = ("siblings1", "siblings2")
ORACLE = "oracle:"
BLOCK_SIZE = 16

Scores = Callable[[str], torch.Tensor]
"""A number for each position of the prompt, by the name of a measure: "deviation", "query", ..."""


@dataclass(frozen=True, slots=True)
class Base:
    """What stood before the modules when they were encoded.

    Attributes:
        names: Of one or several, over which the mean is taken.
        is_first_alike: Whether the first module is encoded as the others are.
        has_norm: Whether mean keys are given the mean norm.
    """

    names: tuple[str, ...]
    is_first_alike: bool = False
    has_norm: bool = False

    @classmethod
    def parse(cls, text: str, options: Sequence[str]) -> Base | None:
        """The base with this name, or None if there is none."""
        names = tuple(text.split("|"))
        single = names[0] in ("plain", *UNPRIMED) and len(names) == 1
        if not single and not all(map(is_primer, names)):
            return None
        return cls(names, "alike" in options, "norm" in options)

    @property
    def is_primed(self) -> bool:
        """Whether there is a primer, without which the first module is encoded as the others."""
        return is_primer(self.names[0])

    @property
    def is_first_exact(self) -> bool:
        """Whether the first module has seen all that lies before it, so it is never repaired."""
        return self.names == ("anchored",) or (self.is_primed and not self.is_first_alike)


def is_primer(name: str) -> bool:
    """Whether this is the name of a primer."""
    return name in (*MADE_UP, *SIBLINGS) or re.fullmatch(rf"{ORACLE}[1-9]\d*", name) is not None


@dataclass(frozen=True)
class Policy:
    """How modules are encoded and which of their tokens are repaired."""

    name: str
    base: Base
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
        repair, _, text = body.rpartition("@")
        base = Base.parse(text, options)
        if not repair and base is None:
            repair, base = text, Base.parse("isolated", options)
        if base is None:
            raise ValueError(f"unknown base in policy {name!r}")
        parts = (part.partition(":") for part in repair.split("|") if part)
        repairs = tuple((kind, int(amount or 0)) for kind, _, amount in parts)
        weight = 1.0
        for option in options:
            key, _, value = option.partition("=")
            if key not in ("alike", "causal", "norm", "weight"):
                raise ValueError(f"unknown option in policy {name!r}")
            weight = float(value) if key == "weight" else weight
        return cls(name, base, repairs, "causal" in options, weight)

    def repaired(self, modules: Sequence[range], scores: Scores, seed: str) -> list[int]:
        """The positions of the tokens to compute again, in ascending order."""
        chosen: set[int] = set()
        candidates = modules[1:] if self.base.is_first_exact else modules
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
        case "block-prepared":
            return _best_blocks_of_each(modules, scores("prepared"), budget)
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


def _best_blocks(modules: Sequence[range], values: torch.Tensor, budget: float) -> list[int]:
    """The blocks with the largest sums, as long as at least half of the next is in the budget."""
    chosen: list[int] = []
    blocks = _blocks(modules)
    for block in sorted(blocks, key=lambda block: -float(values[block.start : block.stop].sum())):
        if len(chosen) + len(block) / 2 > budget:
            break
        chosen += block
    return chosen


def _best_blocks_of_each(modules: Sequence[range], values: torch.Tensor, budget: int) -> list[int]:
    """The best blocks of each module. Counted through all modules, so that the share is right."""
    chosen: list[int] = []
    for module in modules:
        due = budget * (module.stop - modules[0].start) / (modules[-1].stop - modules[0].start)
        chosen += _best_blocks([module], values, due - len(chosen))
    return chosen
