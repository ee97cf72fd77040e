"""How much memory compiled schemas take: the one place that knows."""

from __future__ import annotations

from sys import getsizeof

from vllm_promptcache.layout.module_layout import ModuleLayout
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.pml.ast import Schema

# Of a module: the object, its path, mappings and small tuples, its places in the layout's tables.
# Of a run: the object and its two numbers. Of a token: its number; references come on top.
_MODULE_BYTES = 640
_RUN_BYTES = 160
_TOKEN_BYTES = 32
_REFERENCE_BYTES = 8
# Of a variant of a module, which has the tokens of that one: the object, its context and its key.
_VARIANT_BYTES = 450
# Of a module in the tree, with its text node and their places.
_NODE_BYTES = 500
PIECE_BYTES = 300
"""Of a piece of a module: the object, its run and its number."""


def schema_bytes(schema: Schema, layout: SchemaLayout) -> int:
    """Bytes that a schema takes with its tree: the document, and each text once more."""
    tree = 2 * getsizeof(schema.source.text) + _NODE_BYTES * len(layout.modules)
    return tree + layout_bytes(layout)


def layout_bytes(layout: SchemaLayout) -> int:
    """Bytes that a compiled schema takes, within a quarter."""
    whole = sum(map(module_bytes, (*layout.modules, *layout.primers)))
    variants = sum(_VARIANT_BYTES + getsizeof(module.packed) for module in layout.firsts)
    return getsizeof(layout.siblings) + whole + variants


def module_bytes(module: ModuleLayout) -> int:
    """Bytes that a module takes, its tokens included."""
    num_references = len(module.token_ids) + len(module.kept_token_ids)
    tokens = _TOKEN_BYTES * len(module.token_ids) + _REFERENCE_BYTES * num_references
    return moved_bytes(module) + tokens + getsizeof(module.packed)


def moved_bytes(module: ModuleLayout) -> int:
    """Bytes that a module takes beside one that has the same tokens."""
    runs = (module.position_runs, module.kept_position_runs, module.kept_runs)
    spans = len(module.context) + len(module.dependencies)
    return _MODULE_BYTES + _RUN_BYTES * sum(map(len, runs)) + 2 * _REFERENCE_BYTES * spans


def salted_bytes(layout: SchemaLayout) -> int:
    """Bytes that a tenant's copy of a private schema takes beside the schema."""
    modules = (*layout.modules, *layout.primers, *layout.firsts)
    return getsizeof(layout.siblings) + sum(
        getsizeof(module) + getsizeof(module.key) + getsizeof(module.packed) for module in modules
    )
