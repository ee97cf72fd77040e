"""Modules at other places than their schema's (2-pml: `layout="compact"`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256

from vllm_promptcache.layout.schema_layout import ModuleLayout
from vllm_promptcache.plan.runs import merge_runs
from vllm_promptcache.plan.sequence import Relocation, Run


@dataclass(frozen=True, slots=True)
class Place:
    """How far the two parts of a module are shifted.

    Attributes:
        head: Positions that its tokens before the first nested module are shifted by.
        tail: Positions that its other tokens are shifted by.
    """

    head: int
    tail: int


def relocated(module: ModuleLayout, place: Place) -> ModuleLayout:
    """Returns a module where a prompt puts it.

    Its head can be had by rotating the KV of the module at its own place, so its key follows from
    that one's and the shift: a relocated module is never taken for one that was encoded at its
    place, from which it differs by rounding.
    """
    if place == Place(0, 0):
        return module
    key = relocated_key(module.key, place.head)
    role_end = module.role_end
    return replace(
        module,
        start=module.start + place.head,
        end=module.end + place.tail,
        head_end=module.head_end + place.head,
        parameters={
            name: replace(slot, start=slot.start + _shift(module, place, slot.start))
            for name, slot in module.parameters.items()
        },
        position_runs=merge_runs(_shifted_runs(module, place, module.position_runs)),
        kept_position_runs=merge_runs(_shifted_runs(module, place, module.kept_position_runs)),
        # What closes at the end of the head closes before a nested module.
        role_end=role_end
        and replace(
            role_end, position=role_end.position + _shift(module, place, role_end.position - 1)
        ),
        key=key,
        relocation=Relocation(key, module.key, place.head) if place.head else None,
    )


def relocated_key(key: bytes, shift: int) -> bytes:
    """Key of the module `key` when it is shifted by that many positions."""
    if shift == 0:
        return key
    return sha256(b"relocated" + key + shift.to_bytes(8, "big", signed=True)).digest()


def _shift(module: ModuleLayout, place: Place, position: int) -> int:
    return place.head if position < module.head_end else place.tail


def _shifted_runs(module: ModuleLayout, place: Place, runs: Iterable[Run]) -> Iterator[Run]:
    for run in runs:
        num_in_head = max(0, min(run.end, module.head_end) - run.start)
        yield Run(run.start + place.head, num_in_head)
        yield Run(run.start + num_in_head + place.tail, run.num_tokens - num_in_head)
