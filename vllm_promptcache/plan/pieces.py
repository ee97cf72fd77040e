"""Tokens of modules that lie at consecutive positions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vllm_promptcache.layout.module_layout import ModuleLayout
from vllm_promptcache.sequence.runs import Run, locate


@dataclass(frozen=True, slots=True)
class Piece:
    """Some kept tokens of a module.

    Attributes:
        module: The module.
        kept: Their indexes among its kept tokens.
        start: Position of the first one; the others follow it without a gap.
    """

    module: ModuleLayout
    kept: Run
    start: int

    @property
    def num_tokens(self) -> int:
        """How many there are."""
        return self.kept.num_tokens

    def before(self, position: int) -> Piece:
        """The part of it that lies before a position; may be empty."""
        num_tokens = max(0, min(self.num_tokens, position - self.start))
        return Piece(self.module, Run(self.kept.start, num_tokens), self.start)


def pieces_of(module: ModuleLayout, kept: Iterable[Run]) -> Iterator[Piece]:
    """Kept tokens of a module, cut where their positions have a gap.

    Args:
        module: The module.
        kept: Indexes among its kept tokens, ascending.
    """
    for run, start in locate(module.kept_position_runs, kept):
        yield Piece(module, run, start)
