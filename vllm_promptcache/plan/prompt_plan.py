"""What a prompt reuses and what it computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Literal, TypeAlias

from vllm_promptcache.layout.schema_layout import ModuleLayout, SchemaLayout
from vllm_promptcache.plan.pieces import pieces_of
from vllm_promptcache.sequence.codec import ExactPlan, pack_plan
from vllm_promptcache.sequence.interleaving import PlacedSpan, inner_runs, interleave, placed_runs
from vllm_promptcache.sequence.runs import merge_runs, subtract_runs
from vllm_promptcache.sequence.sequence import (
    Interleaving,
    ModuleSpan,
    Relocation,
    Run,
    SequencePlan,
)

NewKind: TypeAlias = Literal["argument", "text", "repeated"]


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """A cached module in a prompt.

    Attributes:
        layout: The module.
        reused: Indexes of the kept tokens that are reused, ascending.
        num_attended: How many of them, on average over the prompt's modules, are computed again
            because the prompt's end attends to them, see `core.repair.query_repair`.
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
        return sum(run.num_tokens for run in self.reused)

    @property
    def span(self) -> ModuleSpan:
        """What the engine reads of it."""
        return ModuleSpan(self.layout.key, self.layout.num_kept_tokens, self.reused)

    @property
    def first_position(self) -> int:
        """Position of the first token that is reused; there must be one."""
        return next(pieces_of(self.layout, self.reused)).start

    @property
    def last_position(self) -> int:
        """Position of the last token that is reused; there must be one."""
        end = self.reused[-1].end
        if end == self.layout.num_kept_tokens:
            return self.layout.kept_position_runs[-1].end - 1
        return next(pieces_of(self.layout, [Run(end - 1, 1)])).start

    @property
    def placed(self) -> PlacedSpan:
        """What the engine reads of it, and where that lies."""
        return PlacedSpan(
            self.span, tuple(placed_runs(self.layout.kept_position_runs, self.reused))
        )

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


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """A prompt as it is laid out.

    Attributes:
        schema: Name of its schema.
        modules: The root, then the imported cached modules in the order of the block table, and
            what else they were encoded behind, of which nothing is reused; empty for a `baseline`.
        new: Tokens that are computed, by position.
        block_size: Tokens in a KV cache block, which the order of the prompt depends on.
        sequence: The modules it reads and the positions of the tokens it computes.
        prompt_token_ids: Full blocks of all modules, tail tokens of all modules, new tokens by
            position; `[num_tokens]`. This is the order of the block table, not that of the text,
            see `reading_order`.
        packed: Value of `extra_args["prompt_modules"]`.
        exact: The same prompt as it is once its combination of modules has been promoted, None if
            that cannot be.
    """

    schema: str
    modules: tuple[PlannedModule, ...]
    new: tuple[NewTokens, ...]
    block_size: int
    sequence: SequencePlan
    prompt_token_ids: list[int]
    packed: bytes
    exact: PromptPlan | None = None

    @property
    def num_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def num_cached_tokens(self) -> int:
        """Tokens whose KV is read from modules."""
        return self.sequence.num_cached_tokens

    @property
    def num_new_tokens(self) -> int:
        """Tokens that are computed."""
        return self.sequence.num_new_tokens

    @property
    def next_position(self) -> int:
        """Position of the first generated token."""
        return self.sequence.next_position


def make_plan(
    layout: SchemaLayout,
    modules: Sequence[PlannedModule],
    new: Iterable[NewTokens],
    *,
    block_size: int,
    exact: PromptPlan | None = None,
) -> PromptPlan:
    """Puts a plan together.

    Args:
        layout: The prompt's schema.
        modules: Cached modules of the prompt.
        new: All tokens that are computed, at least one, in any order.
        block_size: Tokens in a KV cache block.
        exact: The plan that may take this one's place; see `PromptPlan.exact`.
    """
    ordered = sorted(new, key=attrgetter("start"))
    position_runs = merge_runs(tokens.run for tokens in ordered)
    modules, interleaving = _interleaved(modules, position_runs, block_size)
    reused = [planned for planned in modules if planned.num_tokens]
    spans = tuple(planned.span for planned in reused)
    sequence = SequencePlan(spans, position_runs, interleaving)
    return PromptPlan(
        schema=layout.name,
        modules=tuple(modules),
        new=tuple(ordered),
        block_size=block_size,
        sequence=sequence,
        prompt_token_ids=_engine_order(reused, spans, ordered, block_size),
        packed=pack_plan(
            layout.name,
            sequence,
            _packed(layout, reused if exact is None else (*reused, *exact.modules)),
            _relocations(reused),
            layout.siblings,
            None if exact is None else _pack_exact(exact),
            _attended(reused),
        ),
        exact=exact,
    )


def num_attention_rows(modules: Iterable[PlannedModule], new: Iterable[NewTokens]) -> int:
    """Rows of attention that a prompt of some modules and new tokens takes, before it is planned.

    Args:
        modules: Cached modules of the prompt.
        new: All tokens that are computed, in any order.
    """
    last = max((planned.last_position for planned in modules if planned.reused), default=-1)
    runs = merge_runs(tokens.run for tokens in sorted(new, key=attrgetter("start")))
    return 1 + sum(run.start <= last for run in runs)


def _attended(reused: Iterable[PlannedModule]) -> tuple[int, ...]:
    counts = tuple(planned.num_attended for planned in reused)
    return counts if any(counts) else ()


def _interleaved(
    modules: Sequence[PlannedModule], position_runs: Sequence[Run], block_size: int
) -> tuple[Sequence[PlannedModule], Interleaving | None]:
    """The modules, cut where new tokens stand between their own, and how both are put in order."""
    last = max((planned.last_position for planned in modules if planned.reused), default=-1)
    if position_runs[0].start > last:
        return modules, None
    placed = {id(planned): planned.placed for planned in modules if planned.reused}
    inner = inner_runs(placed.values(), position_runs)
    breaks = [run.start for run in inner]
    placed = {key: found.cut(breaks) for key, found in placed.items()}
    cut = [
        replace(planned, reused=placed[id(planned)].span.runs) if planned.reused else planned
        for planned in modules
    ]
    return cut, interleave(tuple(placed.values()), inner, block_size)


def _pack_exact(plan: PromptPlan) -> ExactPlan:
    paths = [planned.layout.path for planned in plan.modules]
    return ExactPlan(plan.sequence, plan.prompt_token_ids, paths)


def reading_order(plan: PromptPlan) -> list[int]:
    """All tokens of a prompt by position, `[num_tokens]`: decoded, they are its text."""
    return [token_id for tokens in _by_position(plan) for token_id in tokens.token_ids]


def baseline(plan: PromptPlan) -> PromptPlan:
    """The same tokens at the same positions as one plain prefill: nothing is reused."""
    new = _by_position(plan)
    sequence = SequencePlan((), merge_runs(tokens.run for tokens in new))
    return replace(
        plan,
        modules=(),
        new=new,
        sequence=sequence,
        prompt_token_ids=_engine_order((), (), new, plan.block_size),
        packed=pack_plan(plan.schema, sequence, ()),
        exact=None,
    )


def repeated_tokens(module: ModuleLayout, kept: Iterable[Run]) -> Iterator[NewTokens]:
    """Some kept tokens of a module as new tokens.

    Args:
        module: The module.
        kept: Their indexes, ascending.
    """
    for piece in pieces_of(module, kept):
        token_ids = module.kept_token_ids[piece.kept.start : piece.kept.end]
        yield NewTokens("repeated", module.path, token_ids, piece.start)


def _by_position(plan: PromptPlan) -> tuple[NewTokens, ...]:
    """Everything in a prompt as if it were all computed."""
    reused = (tokens for planned in plan.modules for tokens in _repeated(planned))
    return tuple(sorted((*plan.new, *reused), key=attrgetter("start")))


def _repeated(planned: PlannedModule) -> Iterator[NewTokens]:
    return repeated_tokens(planned.layout, planned.reused)


def _engine_order(
    reused: Iterable[PlannedModule],
    spans: Iterable[ModuleSpan],
    new: Iterable[NewTokens],
    block_size: int,
) -> list[int]:
    blocks: list[int] = []
    tails: list[int] = []
    for planned, span in zip(reused, spans, strict=True):
        token_ids = planned.layout.kept_token_ids
        for run in span.full_blocks(block_size):
            blocks += token_ids[run.start * block_size : run.end * block_size]
        for run in span.tails(block_size):
            tails += token_ids[run.start : run.end]
    blocks += tails
    for tokens in new:
        blocks += tokens.token_ids
    return blocks


def _packed(layout: SchemaLayout, reused: Iterable[PlannedModule]) -> list[tuple[bytes, bytes]]:
    """Modules that are read and their contexts, contexts first, each once."""
    packed: dict[bytes, bytes] = {}
    modules = {planned.layout.index: planned.layout for planned in reused}
    for module in modules.values():
        for index in module.dependencies:
            # Modules of a chain are none of the schema's.
            context = layout.at(index) if index < layout.num_indexes else modules[index]
            packed[context.key] = context.packed
        packed[module.relocation.origin if module.relocation else module.key] = module.packed
    return list(packed.items())


def _relocations(reused: Iterable[PlannedModule]) -> list[Relocation]:
    relocations = (planned.layout.relocation for planned in reused)
    return [relocation for relocation in relocations if relocation is not None]
