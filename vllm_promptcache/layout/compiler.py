"""Compiles a schema for a tokenizer: from the tree of a schema to its layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import TypeVar

import msgspec

from vllm_promptcache.layout.checks import check_layout, refuse, scaffold_members
from vllm_promptcache.layout.content import roles_in
from vllm_promptcache.layout.context import Contexts
from vllm_promptcache.layout.drafts import ModuleDraft
from vllm_promptcache.layout.placement import Placement, texts_in
from vllm_promptcache.layout.primer import PRIMER_NAME, draft_primers
from vllm_promptcache.layout.schema_layout import ContextSpan, ModuleLayout, SchemaLayout
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.pml.ast import NO_REPAIR, EncodePolicy, Repair, Schema, SchemaPolicy
from vllm_promptcache.sequence.codec import Recipe, pack_recipe
from vllm_promptcache.sequence.runs import Run, merge_runs, subtract_runs
from vllm_promptcache.sequence.spans import ModuleSpan, SequencePlan

KEY_VERSION = 1
"""Part of every key; changes with whatever else a module's KV depends on."""

_Placed = TypeVar("_Placed", ModuleDraft, ModuleLayout)

# Keys of a private schema before it is `salted`: they are those of no public module.
_NO_TENANT = b"private"


def compile_schema(
    schema: Schema,
    tokenizer: LayoutTokenizer,
    *,
    default_encode: SchemaPolicy = "isolated",
    default_repair: Repair = NO_REPAIR,
    max_model_len: int | None,
) -> SchemaLayout:
    """Lays out a schema and derives all that is needed to encode its modules.

    The positions are those of the paper's section 3.3: document order, all members of a union from
    the same position on, `len` positions for a parameter.

    Args:
        schema: A parsed and validated schema.
        tokenizer: The model's tokenizer.
        default_encode: Policy where neither the module nor the schema says one.
        default_repair: The same for repair.
        max_model_len: Positions the model has, None for no limit.

    Raises:
        PMLError: The schema is too long, uses a role that the model does not have, or asks for
            what does not go together.
        UnsupportedError: It uses roles, and the model's chat template cannot be taken apart.
    """
    has_roles = _check_roles(schema, tokenizer)
    policy = schema.encode or default_encode
    # Modules of an exact schema are only what its chains are made of.
    encode: EncodePolicy = "isolated" if policy == "exact" else policy
    repair = schema.repair or default_repair
    placement = _place(schema, tokenizer, encode, repair, max_model_len)
    drafts = placement.modules
    check_layout(schema, drafts, max_model_len=max_model_len)
    primers = draft_primers(drafts, tokenizer, is_compact=placement.is_compact)
    contexts = Contexts(drafts, primers, placement.is_compact)
    salt = _NO_TENANT if schema.private else b""
    finished = _finish([*drafts, *primers.values()], contexts, salt)
    modules = finished[: len(drafts)]
    by_name: dict[str, list[int]] = {}
    for module in modules[1:]:
        by_name.setdefault(module.name, []).append(module.index)
    return SchemaLayout(
        name=schema.name,
        modules=modules,
        primers=finished[len(drafts) :],
        unions=tuple(placement.unions),
        children=tuple(draft.children for draft in drafts),
        by_name=by_name,
        has_roles=has_roles,
        private=schema.private,
        is_compact=placement.is_compact,
        has_free_order=schema.order == "any",
        is_exact=policy == "exact",
        scaffolds=scaffold_members(schema, drafts),
    )


def _check_roles(schema: Schema, tokenizer: LayoutTokenizer) -> bool:
    number = -1
    for number, role in enumerate(roles_in(schema.children)):
        tokenizer.roles.check(role, schema.source, is_first=number == 0)
    return number >= 0


def _place(
    schema: Schema,
    tokenizer: LayoutTokenizer,
    encode: EncodePolicy,
    repair: Repair,
    max_model_len: int | None,
) -> Placement:
    first_role = next(roles_in(schema.children), None)
    start_ids = tokenizer.start_ids if first_role is None else tokenizer.chat_start_ids
    needs_preamble = first_role is not None and first_role.role != "system"
    preamble = tokenizer.roles.preamble if needs_preamble else ""
    writes_bos = first_role is not None and tokenizer.roles.starts_with_bos
    start = tokenizer.bos_text if writes_bos else ""
    # Wrappers recur with every role; each text is tokenised once, all in one call.
    inner = texts_in(schema.children, tokenizer, preamble or start)
    texts = list({tokenizer.placed(preamble, start), *inner})
    longest = max(len(placed.text) for placed in texts)
    if max_model_len is not None and not tokenizer.may_fit(longest, max_model_len):
        message = f"a text of {longest} characters is too long for {max_model_len} tokens"
        hint = 'split it into modules of a schema with `layout="compact"`, and import a few'
        refuse(schema, schema.location, message, hint)
    token_ids = dict(zip(texts, tokenizer.encode_placed(texts), strict=True))
    is_compact = schema.layout == "compact"

    def place(*, has_leads: bool) -> Placement:
        pin = schema.pin or None
        placement = Placement(tokenizer, token_ids, encode, repair, pin, is_compact, has_leads)
        placement.place(schema.children, start_ids=start_ids, start=start, preamble=preamble)
        return placement

    # In other schemas there are the positions of the modules before it.
    placement = place(has_leads=is_compact)
    length = max(draft.end for draft in placement.modules)
    # A module that leaves no room for a primer is better off without one than refused.
    is_too_long = max_model_len is not None and length > max_model_len
    return place(has_leads=False) if is_too_long else placement


def salted(layout: SchemaLayout, salt: bytes) -> SchemaLayout:
    """Returns a private schema as it is for one tenant: its modules are shared with no other.

    Args:
        layout: A private schema.
        salt: The tenant's salt; part of all keys.
    """
    done: dict[int, ModuleLayout] = {}
    for module in _contexts_first([*layout.modules, *layout.primers]):
        key, packed = _identify(module, done, salt)
        done[module.index] = replace(module, key=key, packed=packed)
    modules = tuple(done[module.index] for module in layout.modules)
    return replace(layout, modules=modules, primers=tuple(done[p.index] for p in layout.primers))


def _contexts_first(modules: Iterable[_Placed]) -> list[_Placed]:
    """Modules in document order, each with its primer before what is nested in it."""
    return sorted(modules, key=lambda module: (module.start, module.index))


def _finish(
    drafts: Sequence[ModuleDraft], contexts: Contexts, salt: bytes
) -> tuple[ModuleLayout, ...]:
    done: dict[int, ModuleLayout] = {}
    for draft in _contexts_first(drafts):
        done[draft.index] = _module(draft, contexts.of(draft), done, salt)
    return tuple(done[draft.index] for draft in drafts)


def _module(
    draft: ModuleDraft,
    context: tuple[ContextSpan, ...],
    done: Mapping[int, ModuleLayout],
    salt: bytes,
) -> ModuleLayout:
    """Makes a module of its draft, given all modules of its context."""
    dependencies = (i for s in context for i in (*done[s.index].dependencies, s.index))
    position_runs = merge_runs(draft.runs)
    module = ModuleLayout(
        index=draft.index,
        path=draft.path,
        parent=draft.parent,
        last_descendant=draft.last_descendant,
        union=draft.union,
        start=draft.start,
        end=draft.end,
        head_end=draft.head,
        num_reusable=draft.num_reusable,
        policy=draft.policy,
        cached=draft.cached,
        repair=draft.repair,
        pin=draft.pin,
        parameters=draft.parameters,
        token_ids=tuple(draft.token_ids),
        position_runs=position_runs,
        encoded_runs=position_runs,
        kept_runs=merge_runs(draft.kept_runs),
        kept_token_ids=tuple(draft.kept_ids),
        kept_position_runs=merge_runs(draft.kept_position_runs),
        context=context,
        dependencies=tuple(dict.fromkeys(dependencies)),
        role_marks=tuple(draft.role_marks),
        key=b"",
        packed=b"",
    )
    key, packed = _identify(module, done, salt)
    return replace(module, key=key, packed=packed)


def _identify(
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
