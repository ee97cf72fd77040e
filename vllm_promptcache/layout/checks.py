"""Rules of a schema that can be checked only when its modules are laid out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from vllm_promptcache.layout.drafts import ModuleDraft
from vllm_promptcache.pml.ast import Location, Scaffold, Schema
from vllm_promptcache.pml.diagnostics import pml_error, quote


def check_layout(
    schema: Schema, drafts: Sequence[ModuleDraft], *, max_model_len: int | None
) -> None:
    """Checks that what a schema asks for goes together, and that it fits the model.

    Raises:
        PMLError: It does not.
    """
    _check_pins(schema, drafts)
    _check_order(schema)
    _check_length(schema, drafts, max_model_len)


def scaffold_members(schema: Schema, drafts: Sequence[ModuleDraft]) -> tuple[frozenset[int], ...]:
    """Indexes of the modules of each scaffold and of the root, those with most tokens first.

    Raises:
        PMLError: No prompt can use a scaffold.
    """
    indexes = {draft.path: draft.index for draft in drafts}
    scaffolds = []
    for scaffold in schema.scaffolds:
        members = [drafts[indexes[path]] for path in scaffold.paths]
        _check_scaffold(schema, scaffold, members)
        scaffolds.append(frozenset({0, *(member.index for member in members)}))
    return tuple(sorted(scaffolds, key=lambda s: -sum(len(drafts[i].kept_ids) for i in s)))


def refuse(schema: Schema, location: Location, message: str, hint: str) -> NoReturn:
    """Raises the error about a place in a schema."""
    raise pml_error(schema.source, location, message, hint)


def _check_scaffold(schema: Schema, scaffold: Scaffold, members: Sequence[ModuleDraft]) -> None:
    unions: dict[int, ModuleDraft] = {}
    for member in members:
        if not member.cached:
            message = f'the scaffold names {quote(member.path)}, which has `cache="false"`'
            refuse(schema, scaffold.location, message, "leave it out of the scaffold")
        if member.union is None:
            continue
        other = unions.setdefault(member.union, member)
        if other is not member:
            message = f"the scaffold names {quote(other.path)} and {quote(member.path)}"
            hint = "they are members of one union, of which a prompt imports at most one"
            refuse(schema, scaffold.location, message, hint)


def _check_pins(schema: Schema, drafts: Sequence[ModuleDraft]) -> None:
    if not any(draft.pin for draft in drafts):
        return
    if schema.private:
        # Any tenant could fill the pool.
        message = "modules of a private schema cannot be pinned"
        refuse(schema, schema.location, message, "leave out `pin`")
    # Where the document does not say so itself, its pins are without effect; see `engine_pins`.
    if schema.encode == "exact":
        message = 'modules of a schema with `encode="exact"` cannot be pinned'
        hint = "their KV is another one in every combination of modules; leave out `pin`"
        refuse(schema, schema.location, message, hint)


def _check_order(schema: Schema) -> None:
    if schema.order == "any" and schema.layout != "compact":
        message = '`order="any"` goes with `layout="compact"` only'
        hint = "in other schemas every module has a place of its own"
        refuse(schema, schema.location, message, hint)


def _check_length(schema: Schema, drafts: Sequence[ModuleDraft], max_model_len: int | None) -> None:
    length = max(draft.end for draft in drafts)
    if max_model_len is None or length <= max_model_len:
        return
    message = f"the schema has {length} positions, more than the model's {max_model_len}"
    longest = max(drafts, key=lambda draft: len(draft.token_ids))
    if len(longest.token_ids) > max_model_len or schema.layout == "compact":
        name = quote(longest.path) if longest.path else "text outside of all modules"
        refuse(schema, schema.location, message, f"shorten it: the longest part is {name}")
    hint = 'set `layout="compact"`: there only what a prompt imports takes positions'
    refuse(schema, schema.location, message, hint)
