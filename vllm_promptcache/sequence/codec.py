"""Plans as bytes: what travels from the front end to the scheduler in `extra_args`.

Modules are packed when a schema is compiled and unpacked only when one has to be encoded, so a warm
request moves their bytes and nothing else.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from operator import attrgetter
from typing import TypeVar

import msgspec

from vllm_promptcache.errors import PlanError
from vllm_promptcache.sequence.sequence import (
    KEY_BYTES,
    Interleaving,
    ModuleSpan,
    ModuleSpec,
    Relocation,
    Run,
    SequencePlan,
)

T = TypeVar("T")

PLAN_KEY = "prompt_modules"
# Beside the plan: paths of the modules it reads, where the client wants to know about them.
DETAIL_KEY = "prompt_module_paths"
PLAN_VERSION = 6


class ExactPlan(msgspec.Struct, frozen=True, array_like=True):
    """The same prompt with its modules encoded behind each other, should they be resident.

    Attributes:
        sequence: What it reads then, and where its new tokens lie.
        token_ids: The prompt in the order of this sequence, `[num_tokens]`.
        paths: Paths of the modules that it reads, in the order of the block table.
    """

    sequence: SequencePlan
    token_ids: list[int]
    paths: list[str]


class PackedPlan(msgspec.Struct, frozen=True, array_like=True):
    """A plan as it travels.

    Attributes:
        version: Format of the plan; another version is refused.
        schema: Name of the prompt's schema, for metrics.
        sequence: What the request reads and where its new tokens lie.
        modules: `(key, packed module)` of every module that `sequence` reads, and of their
            contexts.
        relocations: Modules that `sequence` reads at other places than where `modules` has them.
        siblings: Keys of modules that other prompts of the schema read, one behind the other.
        exact: What takes the place of `sequence` where it can.
        attended: For each span of `sequence` how much it adds to the number of tokens that are
            repaired by attention, see `core.repair.query_repair`; 0 if none of its are; empty
            without.
    """

    version: int
    schema: str
    sequence: SequencePlan
    modules: tuple[tuple[bytes, bytes], ...]
    relocations: tuple[Relocation, ...]
    siblings: bytes
    exact: ExactPlan | None = None
    attended: tuple[int, ...] = ()

    @property
    def sibling_keys(self) -> list[bytes]:
        """The keys in `siblings`."""
        starts = range(0, len(self.siblings), KEY_BYTES)
        return [self.siblings[start : start + KEY_BYTES] for start in starts]


_encoder = msgspec.msgpack.Encoder()
_plan_decoder = msgspec.msgpack.Decoder(PackedPlan)
_module_decoder = msgspec.msgpack.Decoder(ModuleSpec)


def pack_module(spec: ModuleSpec) -> bytes:
    """Returns `spec` as bytes for `unpack_module`."""
    return _encoder.encode(spec)


def pack_plan(
    schema: str,
    sequence: SequencePlan,
    modules: Sequence[tuple[bytes, bytes]],
    relocations: Sequence[Relocation] = (),
    siblings: bytes = b"",
    exact: ExactPlan | None = None,
    attended: tuple[int, ...] = (),
) -> bytes:
    """Returns the value of `extra_args["prompt_modules"]` for a request."""
    plan = PackedPlan(
        version=PLAN_VERSION,
        schema=schema,
        sequence=sequence,
        modules=tuple(modules),
        relocations=tuple(relocations),
        siblings=siblings,
        exact=exact,
        attended=attended,
    )
    return _encoder.encode(plan)


def unpack_plan(data: object, *, num_prompt_tokens: int) -> PackedPlan:
    """Reads a plan and checks that it fits its request.

    Args:
        data: The value of `extra_args["prompt_modules"]`.
        num_prompt_tokens: Length of the request's prompt in tokens.

    Raises:
        PlanError: `data` is no plan, of another version, or contradicts the prompt.
    """
    plan = _decode(_plan_decoder, data)
    _require(plan.version == PLAN_VERSION, f"version {plan.version}, expected {PLAN_VERSION}")
    _check_layout(plan.sequence, num_prompt_tokens)
    _require(len(plan.siblings) % KEY_BYTES == 0, "keys of siblings of the wrong length")
    packed = {key for key, _ in plan.modules}
    origins = {relocation.origin for relocation in plan.relocations}
    _require(origins <= packed, "the origin of a module is missing")
    packed |= {relocation.key for relocation in plan.relocations}
    _require(all(span.key in packed for span in plan.sequence.spans), "a module is missing")
    if plan.attended:
        pairs = zip(plan.attended, plan.sequence.spans, strict=False)
        _require(len(plan.attended) == len(plan.sequence.spans), "a repaired span is missing")
        _require(all(0 <= num <= span.num_tokens for num, span in pairs), "bad repaired tokens")
    if plan.exact is not None:
        _check_exact(plan.exact, packed, num_prompt_tokens)
    return plan


def unpack_module(data: object, *, key: bytes) -> ModuleSpec:
    """Reads a packed module.

    Raises:
        PlanError: `data` is no module, or not the one called `key`.
    """
    spec = _decode(_module_decoder, data)
    _require(spec.key == key, "a packed module has another key than it is listed under")
    _check_sequence(spec.sequence)
    _check_runs(spec.kept_runs)
    num_tokens = len(spec.token_ids)
    _require(spec.sequence.num_new_tokens == num_tokens, "a module's tokens lack positions")
    _require(bool(spec.kept_runs) and spec.kept_runs[-1].end <= num_tokens, "bad kept tokens")
    return spec


def _decode(decoder: msgspec.msgpack.Decoder[T], data: object) -> T:
    if not isinstance(data, bytes):
        raise PlanError(f"malformed prompt plan: {type(data).__name__} instead of bytes")
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise PlanError(f"malformed prompt plan: {error}") from None


def _check_layout(sequence: SequencePlan, num_prompt_tokens: int) -> None:
    _check_sequence(sequence)
    num_tokens = sequence.num_cached_tokens + sequence.num_new_tokens
    _require(
        num_tokens == num_prompt_tokens,
        f"it lays out {num_tokens} tokens, the prompt has {num_prompt_tokens}",
    )


def _check_exact(exact: ExactPlan, packed: Container[bytes], num_prompt_tokens: int) -> None:
    _check_layout(exact.sequence, num_prompt_tokens)
    _require(len(exact.token_ids) == num_prompt_tokens, "the exact prompt has another length")
    _require(len(exact.paths) == len(exact.sequence.spans) > 0, "a path is missing")
    _require(all(span.key in packed for span in exact.sequence.spans), "a module is missing")


def _check_sequence(sequence: SequencePlan) -> None:
    _check_spans(sequence.spans)
    _require(bool(sequence.position_runs), "no token is to be computed")
    _check_runs(sequence.position_runs)
    if sequence.interleaving is not None:
        _check_interleaving(sequence.interleaving, sequence.num_new_tokens)


def _check_interleaving(interleaving: Interleaving, num_new_tokens: int) -> None:
    tails, new, groups = interleaving.tails, interleaving.new, interleaving.groups
    filled = sorted((*tails, *new), key=attrgetter("start"))
    _check_runs(filled)
    num_tokens = sum(run.num_tokens for run in filled)
    _require(bool(filled) and filled[-1].end == num_tokens, "private tokens have gaps")
    sizes = [run.num_tokens for run in new], [group.num_tokens for group in groups]
    _require(sizes[0] == sizes[1], "new tokens between modules lack places")
    _require(interleaving.num_new_tokens < num_new_tokens, "no new token is the last")
    seen = [0, *(group.num_visible for group in groups)]
    num_blocks = sum(run.num_tokens for run in interleaving.blocks)
    _require(sorted(seen) == seen and seen[-1] == num_blocks, "bad visible blocks")
    _check_runs(sorted(interleaving.blocks, key=attrgetter("start")))


def _check_spans(spans: Iterable[ModuleSpan]) -> None:
    for span in spans:
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
