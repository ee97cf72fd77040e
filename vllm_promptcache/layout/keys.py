"""What the KV of a module depends on, and its key: the SHA-256 of exactly that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import TypeVar

import msgspec

from vllm_promptcache.layout.drafts import ModuleDraft
from vllm_promptcache.layout.module_layout import ContextSpan, ModuleLayout
from vllm_promptcache.layout.primer import PRIMER_NAME
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.sequence.codec import Recipe, pack_recipe
from vllm_promptcache.sequence.runs import Run, subtract_runs
from vllm_promptcache.sequence.spans import ModuleSpan, SequencePlan

KEY_VERSION = 1
"""Part of every key; changes with whatever else a module's KV depends on."""

_Placed = TypeVar("_Placed", ModuleDraft, ModuleLayout)

# Keys of a private schema before it is `salted`: they are those of no public module.
NO_TENANT = b"private"


def salted(layout: SchemaLayout, salt: bytes) -> SchemaLayout:
    """Returns a private schema as it is for one tenant: its modules are shared with no other.

    Args:
        layout: A private schema.
        salt: The tenant's salt; part of all keys.
    """
    done: dict[int, ModuleLayout] = {}
    parts = layout.modules, layout.primers, layout.firsts
    for module in contexts_first([module for part in parts for module in part]):
        key, packed = identify(module, done, salt)
        done[module.index] = replace(module, key=key, packed=packed)
    modules, primers, firsts = (tuple(done[m.index] for m in part) for part in parts)
    return replace(layout, modules=modules, primers=primers, firsts=firsts)


def contexts_first(modules: Iterable[_Placed]) -> list[_Placed]:
    """Modules in document order, each with its primer before what is nested in it."""
    return sorted(modules, key=lambda module: (module.start, module.index))


def identify(
    module: ModuleLayout, done: Mapping[int, ModuleLayout], salt: bytes
) -> tuple[bytes, bytes]:
    """Key and packed form of a module, given those of all modules of its context."""
    spans = tuple(_span(done[span.index], span) for span in module.context)
    sequence = SequencePlan(spans, module.position_runs)
    key = _key(sequence, module.token_ids, module.kept_runs, salt)
    recipe = Recipe(sequence, module.kept_runs, _unread_ids(module))
    return key, pack_recipe(recipe) if module.is_reusable else b""


def _unread_ids(module: ModuleLayout) -> tuple[int, ...]:
    """Own tokens of a module that no prompt has, though it imports the module."""
    if module.name == PRIMER_NAME:
        return module.token_ids
    holes = subtract_runs([Run(0, len(module.token_ids))], module.kept_runs)
    return tuple(i for run in holes for i in module.token_ids[run.start : run.end])


def _span(module: ModuleLayout, span: ContextSpan) -> ModuleSpan:
    return ModuleSpan(module.key, module.num_kept_tokens, (Run(0, span.num_tokens),))


def _key(
    sequence: SequencePlan, token_ids: tuple[int, ...], kept_runs: tuple[Run, ...], salt: bytes
) -> bytes:
    """Equal for two modules if and only if their blocks are interchangeable."""
    spans = [(span.key, span.num_module_tokens, span.runs) for span in sequence.spans]
    parts = (KEY_VERSION, (spans, sequence.position_runs, None), token_ids, kept_runs, salt)
    return sha256(msgspec.msgpack.encode(parts)).digest()


def relocated_key(key: bytes, shift: int) -> bytes:
    """Key of the module `key` when it is shifted by that many positions."""
    if shift == 0:
        return key
    return sha256(b"relocated" + key + shift.to_bytes(8, "big", signed=True)).digest()
