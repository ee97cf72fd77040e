"""Plans and requests made by hand, for tests of the scheduler's side."""

from __future__ import annotations

import hashlib

from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request

from vllm_promptcache.sequence.codec import PLAN_KEY, pack_module, pack_plan
from vllm_promptcache.sequence.sequence import ModuleSpan, ModuleSpec, Relocation, Run, SequencePlan

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


def request(
    request_id: str,
    spans: list[ModuleSpan],
    modules: list[ModuleSpec],
    siblings: list[ModuleSpec] | None = None,
    relocations: list[Relocation] | None = None,
) -> Request:
    """A request that reads `spans` and computes 3 tokens at position 1000."""
    sequence = SequencePlan(tuple(spans), (Run(1000, 3),))
    packed = pack_plan(
        "schema",
        sequence,
        [(spec.key, pack_module(spec)) for spec in modules],
        relocations or (),
        b"".join(spec.key for spec in siblings or ()),
    )
    return raw_request(request_id, sequence.num_cached_tokens + 3, packed)


def raw_request(request_id: str, num_tokens: int, plan: object) -> Request:
    """A request with anything for a plan; None for a plain one."""
    extra_args = None if plan is None else {PLAN_KEY: plan}
    return Request(
        request_id=request_id,
        prompt_token_ids=[7] * num_tokens,
        sampling_params=SamplingParams(max_tokens=4, extra_args=extra_args),
        pooling_params=None,
    )
