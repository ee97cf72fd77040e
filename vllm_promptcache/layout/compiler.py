"""Compiles a schema for a tokenizer: from the tree of a schema to its layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vllm_promptcache.layout.checks import check_layout, refuse, scaffold_members
from vllm_promptcache.layout.content import roles_in, texts_in
from vllm_promptcache.layout.context import Contexts
from vllm_promptcache.layout.drafts import ModuleDraft
from vllm_promptcache.layout.first import with_variants
from vllm_promptcache.layout.keys import NO_TENANT, contexts_first, identify
from vllm_promptcache.layout.module_layout import ContextSpan, ModuleLayout
from vllm_promptcache.layout.placement import placement_of
from vllm_promptcache.layout.primer import draft_primers
from vllm_promptcache.layout.primer_source import primer_texts
from vllm_promptcache.layout.primer_tokens import PrimerTokens
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.layout.schema_placer import SchemaPlacer
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.pml.ast import Schema
from vllm_promptcache.policies import DEFAULT_POLICY, Policy
from vllm_promptcache.sequence.runs import merge_runs


def compile_schema(
    schema: Schema,
    tokenizer: LayoutTokenizer,
    *,
    default_policy: Policy = DEFAULT_POLICY,
    max_model_len: int | None,
) -> SchemaLayout:
    """Lays out a schema and derives all that is needed to encode its modules.

    The positions are those of the paper's section 3.3: document order, all members of a union from
    the same position on, `len` positions for a parameter.

    Args:
        schema: A parsed and validated schema.
        tokenizer: The model's tokenizer.
        default_policy: Policy where neither the module nor the schema says one.
        max_model_len: Positions the model has, None for no limit.

    Raises:
        PMLError: The schema or a primer of it is too long, it uses a role that the model does not
            have, or asks for what does not go together.
        UnsupportedError: It uses roles, and the model's chat template cannot be taken apart.
    """
    has_roles = _check_roles(schema, tokenizer)
    policy = default_policy.changed(schema.encode, schema.repair)
    is_exact = policy.encode == "exact"
    # Modules of an exact schema are only what its chains are made of.
    of_modules = policy.changed("isolated" if is_exact else None, None)
    texts = primer_texts(schema, tokenizer, of_modules)
    placer = _place(schema, tokenizer, of_modules, texts, max_model_len)
    drafts, placement = placer.modules, placer.placement
    check_layout(schema, drafts, max_model_len=max_model_len)
    primers = draft_primers(drafts, texts, placement)
    contexts = Contexts(drafts, primers.before, placement)
    salt = NO_TENANT if schema.private else b""
    finished = _finish([*drafts, *primers.drafts], contexts, salt)
    modules, firsts = with_variants(
        finished[: len(drafts)], finished[len(drafts) :], placement, salt
    )
    by_name: dict[str, list[int]] = {}
    for module in modules[1:]:
        by_name.setdefault(module.name, []).append(module.index)
    return SchemaLayout(
        name=schema.name,
        modules=modules,
        primers=finished[len(drafts) :],
        firsts=firsts,
        unions=tuple(placer.unions),
        children=tuple(draft.children for draft in drafts),
        by_name=by_name,
        has_roles=has_roles,
        private=schema.private,
        placement=placement,
        is_exact=is_exact,
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
    policy: Policy,
    primers: Mapping[str, PrimerTokens],
    max_model_len: int | None,
) -> SchemaPlacer:
    first_role = next(roles_in(schema.children), None)
    start_ids = tokenizer.own_start_ids if first_role is None else tokenizer.chat_start_ids
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
    placement, pin = placement_of(schema), schema.pin or None

    def place(*, has_leads: bool) -> SchemaPlacer:
        leads = primers if has_leads else {}
        placer = SchemaPlacer(tokenizer, token_ids, placement, leads, policy, pin)
        placer.place(schema.children, start_ids=start_ids, start=start, preamble=preamble)
        return placer

    placer = place(has_leads=placement.has_leads)
    length = max(draft.end for draft in placer.modules)
    # A module that leaves no room for a primer is better off without one than refused.
    is_too_long = max_model_len is not None and length > max_model_len
    return place(has_leads=False) if is_too_long else placer


def _finish(
    drafts: Sequence[ModuleDraft], contexts: Contexts, salt: bytes
) -> tuple[ModuleLayout, ...]:
    done: dict[int, ModuleLayout] = {}
    for draft in contexts_first(drafts):
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
    key, packed = identify(module, done, salt)
    return replace(module, key=key, packed=packed)
