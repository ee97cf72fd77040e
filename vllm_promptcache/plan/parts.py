"""The parts of a prompt: modules that it reuses, and tokens that it computes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from vllm_promptcache.layout.module_layout import ModuleLayout
from vllm_promptcache.plan.pieces import pieces_of
from vllm_promptcache.policies import EncodeName
from vllm_promptcache.sequence.runs import Run, count, subtract_runs
from vllm_promptcache.sequence.spans import ModuleSpan

ReadAs: TypeAlias = Literal[EncodeName, "repaired"]
"""How near a module is to a plain prefill: `exact` equals it, `repaired` has tokens that do, any
other is named by what it was encoded behind."""
NewKind: TypeAlias = Literal["argument", "text", "repeated"]


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """A cached module in a prompt.

    Attributes:
        layout: The module.
        reused: Indexes of the kept tokens that are reused, ascending.
        num_attended: How many of them, on average over the prompt's modules, are computed again
            because the prompt's end attends to them, see `core.repair`.
    """

    layout: ModuleLayout
    reused: tuple[Run, ...]
    num_attended: int = 0

    @staticmethod
    def first(module: ModuleLayout, num_tokens: int) -> PlannedModule:
        """A module of which the first kept tokens are reused."""
        return PlannedModule(module, (Run(0, num_tokens),) if num_tokens else ())

    def without(self, runs: Iterable[Run]) -> PlannedModule:
        """The same module, of which some tokens are not reused."""
        rest = replace(self, reused=subtract_runs(self.reused, runs))
        return replace(rest, num_attended=min(self.num_attended, rest.num_tokens))

    @property
    def num_tokens(self) -> int:
        """How many of its kept tokens are reused."""
        return count(self.reused)

    def read_as(self, exact: Collection[int]) -> ReadAs:
        """What it is read as, before the engine repairs anything.

        Args:
            exact: Indexes of the modules that equal a plain prefill.
        """
        if self.layout.index in exact:
            return "exact"
        # Only the first tokens are repaired here; where the last one is missing, it has the logits.
        return "repaired" if self.reused[0].start else self.layout.policy.encode

    @property
    def span(self) -> ModuleSpan:
        """What the engine reads of it."""
        layout = self.layout
        return ModuleSpan(
            layout.key, layout.num_kept_tokens, self.reused, layout.kept_position_runs
        )

    @property
    def first_position(self) -> int:
        """Position of the first token that is reused; there must be one."""
        if self.reused[0].start == 0:
            return self.layout.kept_position_runs[0].start
        return next(pieces_of(self.layout, self.reused)).start

    @property
    def last_position(self) -> int:
        """Position of the last token that is reused; there must be one."""
        end = self.reused[-1].end
        if end == self.layout.num_kept_tokens:
            return self.layout.kept_position_runs[-1].end - 1
        return next(pieces_of(self.layout, [Run(end - 1, 1)])).start

    def computed_again(self) -> Iterator[NewTokens]:
        """Its kept tokens that are not reused."""
        everything = Run(0, self.layout.num_kept_tokens)
        if self.reused == (everything,):
            return iter(())
        return repeated_tokens(self.layout, subtract_runs([everything], self.reused))


@dataclass(frozen=True, slots=True)
class NewTokens:
    """Tokens of a prompt that are computed, at consecutive positions.

    Attributes:
        kind: An argument, new text, or tokens of a module that are computed again.
        owner: `path:parameter` of an argument; the path of the module that holds the text or
            whose tokens are repeated, empty for the root.
        token_ids: The tokens, `[num_tokens]`, at least one.
        start: Position of the first one.
    """

    kind: NewKind
    owner: str
    token_ids: Sequence[int]
    start: int

    @property
    def run(self) -> Run:
        """Their positions."""
        return Run(self.start, len(self.token_ids))

    @property
    def end(self) -> int:
        """One past the last position."""
        return self.start + len(self.token_ids)


def repeated_tokens(module: ModuleLayout, kept: Iterable[Run]) -> Iterator[NewTokens]:
    """Some kept tokens of a module as new tokens.

    Args:
        module: The module.
        kept: Their indexes, ascending.
    """
    for piece in pieces_of(module, kept):
        token_ids = module.kept_token_ids[piece.kept.start : piece.kept.end]
        yield NewTokens("repeated", module.path, token_ids, piece.start)
