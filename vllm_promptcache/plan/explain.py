"""A plan in full, for people and for tests that compute a prompt's output by other means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import msgspec

from vllm_promptcache.layout.module_layout import ModuleLayout
from vllm_promptcache.plan.parts import NewTokens, PlannedModule
from vllm_promptcache.plan.prompt_plan import PromptPlan
from vllm_promptcache.plan.standing import read_exactly
from vllm_promptcache.sequence.block_table import BlockTable, Part
from vllm_promptcache.sequence.runs import Run


@dataclass(frozen=True, slots=True)
class ExplainedModule:
    """A cached module of a prompt.

    Attributes:
        path: The module's path, empty for the root.
        start: First position of its extent.
        token_ids: Own tokens with placeholders, `[num_own_tokens]`.
        position_ids: Their positions, `[num_own_tokens]`.
        encoded_position_ids: The positions that they were encoded at: others if the module was
            moved, which rotates its keys, `[num_own_tokens]`.
        kept: Which of them are in the module's KV: all but placeholders, `[num_own_tokens]`.
        reused: Which of these the prompt reads; the others are computed again,
            `[num_own_tokens]`.
        context: What it was encoded behind: pairs of an index into `Explanation.modules` and how
            many of the first kept tokens of that module, placeholders not counted.
        policy: `isolated`, `anchored` or `primed`, or `exact` where this equals a plain prefill;
            `scaffold` or `exact` for tokens of one or more modules that were encoded behind all
            before them, which have the path of the last one.
        num_full_blocks: Blocks of it that are mapped by reference.
        num_tail_tokens: Tokens behind those that are copied.
    """

    path: str
    start: int
    token_ids: tuple[int, ...]
    position_ids: tuple[int, ...]
    encoded_position_ids: tuple[int, ...]
    kept: tuple[bool, ...]
    reused: tuple[bool, ...]
    context: tuple[tuple[int, int], ...]
    policy: str
    num_full_blocks: int
    num_tail_tokens: int


@dataclass(frozen=True, slots=True)
class ExplainedTokens:
    """Tokens that are computed; see `NewTokens`.

    Attributes:
        kind: `argument`, `text` or `repeated`.
        owner: `path:parameter` of an argument, else the path of a module.
        token_ids: The tokens, `[num_tokens]`.
        position_ids: Their positions, `[num_tokens]`.
    """

    kind: str
    owner: str
    token_ids: tuple[int, ...]
    position_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """All tokens of a prompt with their positions.

    To compute the prompt by hand: run each module's `token_ids` at `encoded_position_ids` behind
    its `context`, keep the KV where `kept`, and rotate the keys to `position_ids`; run all `new`
    tokens by position behind the `reused` KV of all modules, where each sees what lies before it.

    Attributes:
        schema: Name of the prompt's schema.
        num_tokens: Length of the prompt.
        num_cached_tokens: Tokens whose KV is reused.
        num_new_tokens: Tokens that are computed.
        num_attended_tokens: About how many of the reused ones the engine computes again all the
            same, because the prompt's end attends to them: it finds out when it runs the prompt.
        next_position: Position of the first generated token.
        modules: The root, even without tokens, then the imported cached modules in the order of
            the block table, then what else these were encoded behind: primers, and modules that
            the prompt reads encoded otherwise. Empty where nothing is reused (`baseline`).
        new: Tokens that are computed, by position.
    """

    schema: str
    num_tokens: int
    num_cached_tokens: int
    num_new_tokens: int
    num_attended_tokens: int
    next_position: int
    modules: tuple[ExplainedModule, ...]
    new: tuple[ExplainedTokens, ...]

    @staticmethod
    def of(plan: PromptPlan) -> Explanation:
        """Explains a plan."""
        return Explanation(
            schema=plan.schema,
            num_tokens=plan.num_tokens,
            num_cached_tokens=plan.num_cached_tokens,
            num_new_tokens=plan.num_new_tokens,
            num_attended_tokens=sum(item.num_attended for item in plan.modules),
            next_position=plan.next_position,
            modules=tuple(_modules(plan)),
            new=tuple(map(_new, plan.new)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the same as dicts, lists, strings, integers and booleans."""
        # By way of JSON: `to_builtins` leaves tuples as they are.
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return plain


def _modules(plan: PromptPlan) -> Iterator[ExplainedModule]:
    places = {planned.layout.index: place for place, planned in enumerate(plan.modules)}
    table = BlockTable.of(plan.sequence, plan.block_size)
    num_shared, num_copied = _num_tokens(table.shared), _num_tokens(table.tails)
    exact = read_exactly(plan.modules, plan.request.positions)
    spans = count()
    for planned in plan.modules:
        span = next(spans) if planned.reused else None
        num_blocks = num_shared[span] // plan.block_size
        yield _module(planned, places, _policy(planned, exact), num_blocks, num_copied[span])


def _num_tokens(parts: Iterable[Part]) -> Counter[int | None]:
    """Tokens in some parts, by the number of the span."""
    found: Counter[int | None] = Counter()
    for part in parts:
        found[part.span] += part.kept.num_tokens
    return found


def _policy(planned: PlannedModule, exact: Collection[int]) -> str:
    module = planned.layout
    return module.chain or ("exact" if module.index in exact else module.policy.encode)


def _module(
    planned: PlannedModule,
    places: dict[int, int],
    policy: str,
    num_full_blocks: int,
    num_tail_tokens: int,
) -> ExplainedModule:
    module = planned.layout
    return ExplainedModule(
        path=module.path,
        start=module.start,
        token_ids=module.token_ids,
        position_ids=tuple(_integers(module.position_runs)),
        encoded_position_ids=tuple(_integers(module.encoded_runs)),
        kept=tuple(_chosen(module, [Run(0, module.num_kept_tokens)])),
        reused=tuple(_chosen(module, planned.reused)),
        context=tuple((places[span.index], span.num_tokens) for span in module.context),
        policy=policy,
        num_full_blocks=num_full_blocks,
        num_tail_tokens=num_tail_tokens,
    )


def _new(tokens: NewTokens) -> ExplainedTokens:
    position_ids = tuple(range(tokens.start, tokens.end))
    return ExplainedTokens(tokens.kind, tokens.owner, tuple(tokens.token_ids), position_ids)


def _chosen(module: ModuleLayout, runs: Iterable[Run]) -> Iterator[bool]:
    """For each own token of a module whether it is among some of its kept tokens."""
    kept = list(_integers(module.kept_runs))
    indexes = {kept[index] for index in _integers(runs)}
    return (index in indexes for index in range(len(module.token_ids)))


def _integers(runs: Iterable[Run]) -> Iterator[int]:
    return (integer for run in runs for integer in range(run.start, run.end))
