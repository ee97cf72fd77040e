"""What a prompt reuses and what it computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal, TypeAlias

from vllm_promptcache.layout.drafts import merge_runs
from vllm_promptcache.layout.schema_layout import ModuleLayout, SchemaLayout
from vllm_promptcache.plan.codec import pack_plan
from vllm_promptcache.plan.sequence import ModuleSpan, Relocation, Run, SequencePlan

NewKind: TypeAlias = Literal["argument", "text", "repeated"]


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """A cached module in a prompt.

    Attributes:
        layout: The module.
        num_tokens: How many of its kept tokens are reused, from the first one on.
    """

    layout: ModuleLayout
    num_tokens: int

    @property
    def span(self) -> ModuleSpan:
        """What the engine reads of it."""
        return ModuleSpan(self.layout.key, self.num_tokens)


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
        modules: The root, then the imported cached modules in the order of the block table;
            empty for a `baseline`.
        new: Tokens that are computed, by position.
        block_size: Tokens in a KV cache block, which the order of the prompt depends on.
        sequence: The modules it reads and the positions of the tokens it computes.
        prompt_token_ids: Full blocks of all modules, tail tokens of all modules, new tokens by
            position; `[num_tokens]`. This is the order of the block table, not that of the text.
        packed: Value of `extra_args["prompt_modules"]`.
    """

    schema: str
    modules: tuple[PlannedModule, ...]
    new: tuple[NewTokens, ...]
    block_size: int
    sequence: SequencePlan
    prompt_token_ids: list[int]
    packed: bytes

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
) -> PromptPlan:
    """Puts a plan together.

    Args:
        layout: The prompt's schema.
        modules: Cached modules of the prompt.
        new: All tokens that are computed, at least one, in any order.
        block_size: Tokens in a KV cache block.
    """
    ordered = sorted(new, key=attrgetter("start"))
    reused = [planned for planned in modules if planned.num_tokens]
    spans = tuple(planned.span for planned in reused)
    sequence = SequencePlan(spans, merge_runs(tokens.run for tokens in ordered))
    return PromptPlan(
        schema=layout.name,
        modules=tuple(modules),
        new=tuple(ordered),
        block_size=block_size,
        sequence=sequence,
        prompt_token_ids=_engine_order(reused, ordered, block_size),
        packed=pack_plan(
            layout.name, sequence, _packed(layout, reused), _relocations(reused), layout.siblings
        ),
    )


def baseline(plan: PromptPlan, layout: SchemaLayout) -> PromptPlan:
    """The same tokens at the same positions as one plain prefill: nothing is reused."""
    reused = (tokens for planned in plan.modules for tokens in _repeated(planned))
    return make_plan(layout, (), (*plan.new, *reused), block_size=plan.block_size)


def warm_plans(layout: SchemaLayout, *, block_size: int) -> list[PromptPlan]:
    """Short sequences that make the engine encode every module of a schema.

    Each reads one module but for its last token, which is computed again; its other `modules` are
    the contexts. A module of one token has nothing to read ahead and is left to its first prompt.
    """
    plans = []
    for module in layout.modules:
        if module.is_reusable and module.num_kept_tokens > 1:
            planned, repeated = without_last(module)
            contexts = [PlannedModule(layout.modules[index], 0) for index in module.dependencies]
            plans.append(make_plan(layout, [*contexts, planned], [repeated], block_size=block_size))
    return plans


def without_last(module: ModuleLayout) -> tuple[PlannedModule, NewTokens]:
    """Splits the last kept token off a module: it is computed again to get logits."""
    position = module.kept_position_runs[-1].end - 1
    repeated = NewTokens("repeated", module.path, module.kept_token_ids[-1:], position)
    return PlannedModule(module, module.num_kept_tokens - 1), repeated


def repeated_tokens(module: ModuleLayout, first: int, end: int) -> Iterator[NewTokens]:
    """The kept tokens `[first, end)` of a module as new tokens, run by run."""
    done = 0
    for run in module.kept_position_runs:
        skipped = max(0, first - done)
        token_ids = module.kept_token_ids[done + skipped : min(done + run.num_tokens, end)]
        if token_ids:
            yield NewTokens("repeated", module.path, token_ids, run.start + skipped)
        done += run.num_tokens


def _repeated(planned: PlannedModule) -> Iterator[NewTokens]:
    return repeated_tokens(planned.layout, 0, planned.num_tokens)


def _engine_order(
    reused: Sequence[PlannedModule], new: Sequence[NewTokens], block_size: int
) -> list[int]:
    blocks: list[int] = []
    tails: list[int] = []
    for planned in reused:
        num_in_blocks = planned.num_tokens // block_size * block_size
        blocks += planned.layout.kept_token_ids[:num_in_blocks]
        tails += planned.layout.kept_token_ids[num_in_blocks : planned.num_tokens]
    blocks += tails
    for tokens in new:
        blocks += tokens.token_ids
    return blocks


def _packed(layout: SchemaLayout, reused: Iterable[PlannedModule]) -> list[tuple[bytes, bytes]]:
    """Modules that are read and their contexts, contexts first, each once."""
    packed: dict[bytes, bytes] = {}
    for planned in reused:
        for index in (*planned.layout.dependencies, planned.layout.index):
            packed[layout.modules[index].key] = layout.modules[index].packed
    return list(packed.items())


def _relocations(reused: Iterable[PlannedModule]) -> list[Relocation]:
    relocations = (planned.layout.relocation for planned in reused)
    return [relocation for relocation in relocations if relocation is not None]
