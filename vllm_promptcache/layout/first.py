"""Modules that stand first in a prompt: nothing is before them but text of those around them.

A primer stands in for other modules, and where there are none before a module it is in the way. So
a module that was primed has a second *variant*, encoded behind that text alone: `anchored`, which
equals a plain prefill there. It has a key and an index of its own; which of the two a prompt reads
is decided by the module's place (`plan.standing`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vllm_promptcache.layout.keys import identify, relocated_key
from vllm_promptcache.layout.module_layout import ContextSpan, ModuleLayout
from vllm_promptcache.layout.placement import Placement
from vllm_promptcache.layout.relocation import relocate
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.layout.shifts import Shifts
from vllm_promptcache.layout.size import moved_bytes
from vllm_promptcache.sequence.spans import Relocation


def with_variants(
    modules: Sequence[ModuleLayout],
    primers: Sequence[ModuleLayout],
    placement: Placement,
    salt: bytes,
) -> tuple[tuple[ModuleLayout, ...], tuple[ModuleLayout, ...]]:
    """Derives the variants of a schema's modules for prompts in which these stand first.

    Args:
        modules: All modules.
        primers: What only contexts have.
        placement: How they were placed.
        salt: Part of all keys.

    Returns:
        The modules, those with a variant with its index; and the variants, whose indexes go on from
        those of the primers.
    """
    found: list[ModuleLayout] = []
    done = {module.index: module for module in modules}
    shifts: dict[int, int] = {}
    numbered = list(modules)
    for module in modules:
        shifts[module.index] = shift = _shift(module, modules, placement, shifts)
        context = _context(module, numbered, shifts)
        if context == module.context or context is None or not module.is_reusable:
            continue
        index = len(modules) + len(primers) + len(found)
        variant = _variant(module, index, context, shift, done)
        key, packed = identify(variant, done, salt)
        done[index] = replace(variant, key=key, packed=packed)
        found.append(done[index])
        numbered[module.index] = replace(module, first=index)
    return tuple(numbered), tuple(found)


def _shift(
    module: ModuleLayout,
    modules: Sequence[ModuleLayout],
    placement: Placement,
    shifts: Mapping[int, int],
) -> int:
    """How far a module that stands first is from where the schema has it."""
    if module.parent is None:
        return 0
    return shifts[module.parent] - placement.lead(module, modules[module.parent])


def _context(
    module: ModuleLayout, numbered: Sequence[ModuleLayout], shifts: Mapping[int, int]
) -> tuple[ContextSpan, ...] | None:
    """What stands before it: its context without primers, with variants of those around it.

    None if one of these is moved for the prompt: it is not where its KV would be read from.
    """
    context = []
    for span in module.context:
        if span.index >= len(numbered):
            continue
        around = numbered[span.index]
        if around.first is not None:
            context.append(ContextSpan(around.first, span.num_tokens))
        elif shifts[around.index]:
            return None
        else:
            context.append(span)
    return tuple(context)


def _variant(
    module: ModuleLayout,
    index: int,
    context: tuple[ContextSpan, ...],
    shift: int,
    done: Mapping[int, ModuleLayout],
) -> ModuleLayout:
    moved = module
    if shift:
        moved = relocate(module, Shifts((0,), (shift,)), module.end + shift)
    dependencies = (i for s in context for i in (*done[s.index].dependencies, s.index))
    return replace(
        moved,
        index=index,
        head_end=module.head_end + shift,
        policy=module.policy.changed("anchored", None),
        encoded_runs=moved.position_runs,
        context=context,
        dependencies=tuple(dict.fromkeys(dependencies)),
        relocation=None,
    )


def as_first(layout: SchemaLayout, module: ModuleLayout) -> ModuleLayout:
    """Returns a module of a prompt, where the prompt has it, with the KV of its variant.

    Args:
        layout: The prompt's schema.
        module: A module that stands first and has a variant.
    """
    assert module.first is not None, "it has a variant"
    variant = layout.at(module.first)
    return layout.derived.get((module, variant), lambda: _as_first(module, variant), moved_bytes)


def _as_first(module: ModuleLayout, variant: ModuleLayout) -> ModuleLayout:
    # Positions of a parameter may be before it whose argument is empty.
    shift = module.kept_position_runs[0].start - variant.kept_position_runs[0].start
    key = relocated_key(variant.key, shift)
    return replace(
        module,
        index=variant.index,
        policy=variant.policy,
        encoded_runs=variant.encoded_runs,
        context=variant.context,
        dependencies=variant.dependencies,
        key=key,
        packed=variant.packed,
        relocation=Relocation(key, variant.key, shift) if shift else None,
        first=None,
    )
