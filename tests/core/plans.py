"""Plans and requests made by hand, for tests of the scheduler's side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec
from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request

from vllm_promptcache.sequence.codec import (
    PLAN_KEY,
    PackedModule,
    Plan,
    Recipe,
    pack_plan,
    pack_recipe,
)
from vllm_promptcache.sequence.runs import Run, count, merge_runs
from vllm_promptcache.sequence.spans import ModuleSpan, Relocation, SequencePlan
from vllm_promptcache.sequence.spec import ModuleSpec
from vllm_promptcache.store import ReadModule

BLOCK_SIZE = 4


def module(
    name: str, num_tokens: int, *, kept: tuple[Run, ...] = (), context: tuple[ModuleSpan, ...] = ()
) -> ModuleSpec:
    """A module whose key is made of its name."""
    return ModuleSpec(
        hashlib.sha256(name.encode()).digest(),
        SequencePlan(context, (Run(0, num_tokens),)),
        tuple(range(num_tokens)),
        kept or (Run(0, num_tokens),),
    )


def span(spec: ModuleSpec, num_tokens: int | None = None) -> ModuleSpan:
    """A span of the whole module, or of its first tokens."""
    num_kept = spec.num_kept_tokens
    return ModuleSpan(spec.key, num_kept, (Run(0, num_kept if num_tokens is None else num_tokens),))


def read_module(spec: ModuleSpec, encode_id: bytes = b"encode") -> ReadModule:
    """What a worker has read of a module."""
    num_tokens = spec.num_kept_tokens
    return ReadModule(spec.key, num_tokens, -(-num_tokens // BLOCK_SIZE), encode_id)


def placed(spans: Iterable[ModuleSpan]) -> list[ModuleSpan]:
    """Spans of modules one behind the other, from position 0 on."""
    found, end = [], 0
    for one in spans:
        found.append(msgspec.structs.replace(one, positions=(Run(end, one.num_module_tokens),)))
        end += one.num_module_tokens
    return found


def packed(spec: ModuleSpec) -> PackedModule:
    """A module with all of its tokens."""
    recipe = Recipe(spec.sequence, spec.kept_runs, spec.token_ids)
    return PackedModule(spec.key, len(spec.token_ids), pack_recipe(recipe))


def plan(
    spans: Sequence[ModuleSpan],
    modules: Iterable[ModuleSpec],
    new: Sequence[Run] = (Run(1000, 3),),
    **others: object,
) -> Plan:
    """A plan that reads `spans`, which are placed, and computes tokens at `new`."""
    read = [run for one in spans for run in one.read_positions()]
    positions = merge_runs(sorted((*read, *new), key=lambda run: run.start))
    return Plan("schema", positions, tuple(spans), tuple(map(packed, modules)), **others)


def request(
    request_id: str,
    spans: list[ModuleSpan],
    modules: list[ModuleSpec],
    siblings: list[ModuleSpec] | None = None,
    relocations: list[Relocation] | None = None,
) -> Request:
    """A request that reads `spans` and computes 3 tokens at position 1000."""
    return planned_request(
        request_id,
        plan(
            placed(spans),
            modules,
            relocations=tuple(relocations or ()),
            siblings=b"".join(spec.key for spec in siblings or ()),
        ),
    )


def planned_request(
    request_id: str, found: Plan, token_ids: Sequence[int] | None = None
) -> Request:
    """A request with a plan; its tokens, in the order of reading, are all the same without any."""
    made = raw_request(request_id, count(found.positions), pack_plan(found))
    if token_ids is not None:
        made.prompt_token_ids = list(token_ids)
        made._all_token_ids[:] = token_ids
    return made


def raw_request(request_id: str, num_tokens: int, plan: object) -> Request:
    """A request with anything for a plan; None for a plain one."""
    extra_args = None if plan is None else {PLAN_KEY: plan}
    return Request(
        request_id=request_id,
        prompt_token_ids=[7] * num_tokens,
        sampling_params=SamplingParams(max_tokens=4, extra_args=extra_args),
        pooling_params=None,
    )
