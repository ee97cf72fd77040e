"""Lays out a prompt against its schema (paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_promptcache.layout.schema_layout import ModuleLayout, SchemaLayout
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.plan.chat import Conversation, close_with_user
from vllm_promptcache.plan.new_tokens import (
    TextFrame,
    check_size,
    place_arguments,
    place_text,
    tokenize,
)
from vllm_promptcache.plan.prompt_plan import (
    NewTokens,
    PlannedModule,
    PromptPlan,
    make_plan,
    repeated_tokens,
    without_last,
)
from vllm_promptcache.plan.resolve import resolve_prompt
from vllm_promptcache.pml.ast import Prompt
from vllm_promptcache.pml.diagnostics import pml_error


def plan_prompt(
    prompt: Prompt,
    layout: SchemaLayout,
    tokenizer: LayoutTokenizer,
    *,
    max_model_len: int,
    block_size: int,
    conversation: Conversation | None = None,
) -> PromptPlan:
    """Plans a prompt.

    An argument's tokens take the first positions of its parameter. New text before the last
    import takes positions that the schema leaves free, see `TextPlacer.place`; text behind it
    follows everything else. A role's wrapper is new text where the role begins and ends, also
    when imports stand inside of it. Where a user message is the last thing in the prompt, the
    template's generation prompt follows, or the further turns of the conversation.

    Args:
        prompt: A parsed prompt.
        layout: The schema it names.
        tokenizer: The tokenizer that `layout` was compiled with.
        max_model_len: Positions the model has.
        block_size: Tokens in a KV cache block.
        conversation: What follows the prompt in a chat, instead of the generation prompt.

    Raises:
        PMLError: A name is wrong, text or an argument does not fit, or no position is left for
            a generated token.
        UnsupportedError: The prompt uses roles, and the model's chat template cannot be taken
            apart.
    """
    if conversation is not None:
        prompt = close_with_user(prompt)
    resolved = resolve_prompt(prompt, layout, tokenizer)
    if conversation is None:
        generation_prompt = tokenizer.roles.generation_prompt if resolved.has_roles else ""
        frame = TextFrame(behind=generation_prompt, behind_user_only=True)
    else:
        frame = TextFrame(before=conversation.tools, behind=conversation.turns)
    check_size(prompt, resolved, tokenizer, frame, max_model_len)
    token_ids = tokenize(resolved, tokenizer, frame)
    new = [
        *place_arguments(prompt, resolved, token_ids),
        *place_text(prompt, layout, resolved, token_ids, frame),
        *_uncached(resolved.modules),
    ]
    modules, repeated = _reuse(resolved.modules, max((tokens.end for tokens in new), default=0))
    if not new and not repeated:
        raise pml_error(prompt.source, prompt.location, "the prompt has no tokens")
    plan = make_plan(layout, modules, [*new, *repeated], block_size=block_size)
    if plan.next_position >= max_model_len:
        message = (
            f"the prompt takes {plan.next_position} positions, which leaves none of the model's "
            f"{max_model_len} for an answer"
        )
        raise pml_error(prompt.source, prompt.location, message, "leave out modules or text")
    return plan


def _uncached(modules: Sequence[ModuleLayout]) -> list[NewTokens]:
    """Tokens of modules that are computed in every request."""
    return [
        tokens
        for module in modules
        if not module.cached
        for tokens in repeated_tokens(module, module.num_kept_tokens)
    ]


def _reuse(
    modules: Sequence[ModuleLayout], end: int
) -> tuple[list[PlannedModule], list[NewTokens]]:
    """Says what is reused of each cached module, and what is computed again.

    Logits come from a computed token, so where the last position belongs to a module, that one
    token is computed again.

    Args:
        modules: Imported modules.
        end: One past the last position of the new tokens.
    """
    last = max(filter(_is_reusable, modules), key=_kept_end, default=None)
    planned = [PlannedModule(item, item.num_kept_tokens) for item in modules if item.cached]
    if last is None or _kept_end(last) <= end:
        return planned, []
    shortened, repeated = without_last(last)
    return [shortened if item.layout is last else item for item in planned], [repeated]


def _is_reusable(module: ModuleLayout) -> bool:
    return module.is_reusable


def _kept_end(module: ModuleLayout) -> int:
    return module.kept_position_runs[-1].end
