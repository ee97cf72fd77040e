"""Plans as bytes: what travels from the front end to the scheduler in `extra_args`.

The tokens of a prompt travel once, as the tokens of the request, in the order of reading. So what a
module is encoded from is packed without the tokens that prompts have of it: when a schema is
compiled, not for each prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from vllm_promptcache.errors import PlanError
from vllm_promptcache.sequence.runs import Run, count
from vllm_promptcache.sequence.spans import (
    KEY_BYTES,
    ModuleSpan,
    Relocation,
    SequencePlan,
)

T = TypeVar("T")

PLAN_KEY = "prompt_modules"
INLINE = "(inline)"
"""Stands for the schema of prompts that name none; no schema can have this name."""

# Beside the plan: what its modules are called and read as, where the client wants to know.
DETAIL_KEY = "prompt_module_detail"


class Recipe(msgspec.Struct, frozen=True, array_like=True):
    """What a module is encoded from.

    Attributes:
        sequence: The context it is encoded behind, and the positions of its own tokens.
        kept_runs: Indexes of its own tokens whose KV is kept (all but placeholders).
        token_ids: Its own tokens; without those that are kept if a prompt has these.
    """

    sequence: SequencePlan
    kept_runs: tuple[Run, ...]
    token_ids: tuple[int, ...]


class PackedModule(msgspec.Struct, frozen=True, array_like=True):
    """A module that a plan names.

    Attributes:
        key: Its key where its schema has it.
        num_tokens: Its own tokens, placeholders included.
        recipe: What it is encoded from, see `pack_recipe`.
    """

    key: bytes
    num_tokens: int
    recipe: bytes


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """What is asked for a prompt, as it travels.

    Attributes:
        schema: Name of the prompt's schema, for metrics.
        positions: Position ids of all tokens, in the order of reading (ascending).
        spans: What is read of modules; everything else is computed.
        modules: Modules that `spans` names and all that they are encoded behind, but for links.
        links: Modules of a chain: each is encoded behind all before it, and holds tokens that the
            prompt has at its positions.
        can_promote: Whether the links may be read instead of `spans`, should they be resident: all,
            or the first ones and behind them what `spans` reads there.
        relocations: Modules that `spans` reads at other places than where their schema has them.
        siblings: Keys of modules that other prompts of the schema read, one behind the other.
        attended: For each span how much it adds to the number of tokens that are repaired by
            attention, see `core.repair`; 0 if none of its are; empty without.
        has_root: Whether the first span is text that all prompts of the schema have.
        is_warming: Whether it is only there to have its modules encoded.
        num_exact_links: The first links that hold nothing but what `spans` reads as exactly.
    """

    schema: str
    positions: tuple[Run, ...]
    spans: tuple[ModuleSpan, ...]
    modules: tuple[PackedModule, ...] = ()
    links: tuple[ModuleSpan, ...] = ()
    can_promote: bool = False
    relocations: tuple[Relocation, ...] = ()
    siblings: bytes = b""
    attended: tuple[int, ...] = ()
    has_root: bool = False
    is_warming: bool = False
    num_exact_links: int = 0

    @property
    def sequence(self) -> SequencePlan:
        """What the prompt reads and computes (a new object).

        Raises:
            PlanError: It contradicts itself.
        """
        return self.reading(self.spans)

    @property
    def promoted(self) -> SequencePlan:
        """The same where it reads the whole chain instead. Raises as `sequence`."""
        return self.reading(self.links)

    def reading(self, spans: Sequence[ModuleSpan]) -> SequencePlan:
        """The same where it reads some spans instead of its own.

        Raises:
            PlanError: They contradict each other or the plan.
        """
        sequence = SequencePlan.of(spans, self.positions)
        # Tokens that two modules claim, or that are at no position of the prompt, would count
        # twice.
        _require(sequence.num_tokens == count(self.positions), "modules overlap")
        _require(bool(sequence.position_runs), "no token is to be computed")
        is_last = sequence.num_inner_runs < len(sequence.position_runs)
        _require(is_last, "no new token is the last")
        return sequence

    @property
    def num_modules(self) -> int:
        """Modules that may have to be encoded for the prompt."""
        return len(self.modules) + len(self.links)

    @property
    def num_module_tokens(self) -> int:
        """Tokens of all these, placeholders included."""
        num_linked = sum(link.num_module_tokens for link in self.links)
        return num_linked + sum(module.num_tokens for module in self.modules)

    @property
    def sibling_keys(self) -> list[bytes]:
        """The keys in `siblings`."""
        starts = range(0, len(self.siblings), KEY_BYTES)
        return [self.siblings[start : start + KEY_BYTES] for start in starts]


_encoder = msgspec.msgpack.Encoder()
_plan_decoder = msgspec.msgpack.Decoder(Plan)
_recipe_decoder = msgspec.msgpack.Decoder(Recipe)


def pack_recipe(recipe: Recipe) -> bytes:
    """Returns `recipe` as bytes for `unpack_recipe`."""
    return _encoder.encode(recipe)


def pack_plan(plan: Plan) -> bytes:
    """Returns the value of `extra_args["prompt_modules"]` for a request."""
    return _encoder.encode(plan)


def unpack_plan(data: object, *, num_prompt_tokens: int) -> Plan:
    """Reads a plan and checks that it fits its request; `Plan.sequence` checks the rest.

    Args:
        data: The value of `extra_args["prompt_modules"]`.
        num_prompt_tokens: Length of the request's prompt in tokens.

    Raises:
        PlanError: `data` is no plan, or contradicts the prompt.
    """
    plan = _decode(_plan_decoder, data)
    _check_runs(plan.positions)
    num_tokens = count(plan.positions)
    _require(
        num_tokens == num_prompt_tokens,
        f"it lays out {num_tokens} tokens, the prompt has {num_prompt_tokens}",
    )
    for span in (*plan.spans, *plan.links):
        _check_span(span)
        _check_runs(span.positions)
        _require(count(span.positions) == span.num_module_tokens, "a module's tokens lack places")
    _check_names(plan)
    _require(bool(plan.spans) or not plan.has_root, "a span is missing")
    if plan.attended:
        pairs = zip(plan.attended, plan.spans, strict=False)
        _require(len(plan.attended) == len(plan.spans), "a repaired span is missing")
        _require(all(0 <= num <= span.num_tokens for num, span in pairs), "bad repaired tokens")
    return plan


def unpack_recipe(data: object) -> Recipe:
    """Reads a packed recipe.

    Raises:
        PlanError: `data` is none.
    """
    recipe = _decode(_recipe_decoder, data)
    sequence, num_given = recipe.sequence, len(recipe.token_ids)
    for span in sequence.spans:
        _check_span(span)
    _check_runs(sequence.position_runs)
    _check_runs(recipe.kept_runs)
    num_tokens, num_kept = sequence.num_new_tokens, count(recipe.kept_runs)
    _require(num_given in (num_tokens, num_tokens - num_kept), "a module's tokens lack positions")
    _require(num_kept > 0 and recipe.kept_runs[-1].end <= num_tokens, "bad kept tokens")
    return recipe


def _decode(decoder: msgspec.msgpack.Decoder[T], data: object) -> T:
    if not isinstance(data, bytes):
        raise PlanError(f"malformed prompt plan: {type(data).__name__} instead of bytes")
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise PlanError(f"malformed prompt plan: {error}") from None


def _check_names(plan: Plan) -> None:
    """Checks that whatever is read can be encoded."""
    known = {module.key for module in plan.modules}
    _require({found.origin for found in plan.relocations} <= known, "an origin is missing")
    known.update(found.key for found in plan.relocations)
    known.update(link.key for link in plan.links)
    _require({span.key for span in plan.spans} <= known, "a module is missing")
    _require(0 <= plan.num_exact_links <= len(plan.links), "bad number of links")
    _require(len(plan.siblings) % KEY_BYTES == 0, "keys of siblings of the wrong length")


def _check_span(span: ModuleSpan) -> None:
    _require(len(span.key) == KEY_BYTES and bool(span.runs), "bad module span")
    _check_runs(span.runs)
    _require(span.runs[-1].end <= span.num_module_tokens, "a span is longer than its module")


def _check_runs(runs: Iterable[Run]) -> None:
    end = 0
    for run in runs:
        _require(run.start >= end and run.num_tokens > 0, "runs must be ascending and not empty")
        end = run.end


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise PlanError(f"malformed prompt plan: {what}")
