"""Modules at other places than their schema's (docs/how-it-works.md: Layouts)."""

from __future__ import annotations

from dataclasses import replace

from vllm_promptcache.layout.keys import relocated_key
from vllm_promptcache.layout.module_layout import ModuleLayout, RoleMark
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.layout.shifts import Shifts
from vllm_promptcache.layout.size import moved_bytes
from vllm_promptcache.sequence.runs import merge_runs
from vllm_promptcache.sequence.spans import Relocation


def relocated(layout: SchemaLayout, module: ModuleLayout, shifts: Shifts, end: int) -> ModuleLayout:
    """Returns a module where a prompt puts it; prompts want the same ones at the same places.

    Args and rules as for `relocate`.
    """
    key = (module, shifts, end)
    return layout.derived.get(key, lambda: relocate(module, shifts, end), moved_bytes)


def relocate(module: ModuleLayout, shifts: Shifts, end: int) -> ModuleLayout:
    """Returns a module where a prompt puts it.

    What is shifted as far as its first token can be had by rotating the KV of the module at its own
    place, so its key follows from that one's and the shift: a relocated module is never taken for
    one that was encoded at its place, from which it differs by rounding, and by where the context
    lay that it was encoded behind.

    Args:
        module: A module of a schema.
        shifts: Where the prompt puts the positions of the schema.
        end: One past the last position of its extent there.
    """
    kept = module.kept_position_runs
    shift = shifts.at(kept[0].start) if kept else 0
    key = relocated_key(module.key, shift)
    return replace(
        module,
        start=module.start + shifts.at(module.start),
        end=end,
        num_reusable=min(module.num_reusable, shifts.num_together(kept)),
        parameters={
            name: replace(slot, start=slot.start + shifts.at(slot.start))
            for name, slot in module.parameters.items()
        },
        position_runs=merge_runs(p for run in module.position_runs for p in shifts.moved(run)),
        kept_position_runs=merge_runs(p for run in kept for p in shifts.moved(run)),
        role_marks=tuple(_moved(mark, shifts) for mark in module.role_marks),
        key=key,
        relocation=Relocation(key, module.key, shift) if shift else None,
    )


def _moved(mark: RoleMark, shifts: Shifts) -> RoleMark:
    # What closes at the end of a piece closes before what is behind that.
    at = mark.position if mark.opens else mark.position - 1
    return replace(mark, position=mark.position + shifts.at(at))
