"""Lays out a prompt against its schema (paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from vllm_promptcache.layout.content import TextGroup
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.plan.budgets import DEFAULT_BUDGETS, Budgets
from vllm_promptcache.plan.new_tokens import (
    NewText,
    TokenIds,
    check_size,
    place_arguments,
    place_text,
    tokenize,
)
from vllm_promptcache.plan.prompt_plan import PromptPlan, make_plan
from vllm_promptcache.plan.resolve import resolve_prompt
from vllm_promptcache.plan.resolved import ResolvedPrompt
from vllm_promptcache.plan.reuse import Reuse, ReuseChooser
from vllm_promptcache.plan.within import check_bytes, choose_within
from vllm_promptcache.pml.ast import Prompt
from vllm_promptcache.pml.diagnostics import pml_error

Ending: TypeAlias = Callable[[NewText], list[int]]
"""Tokens behind all text of a prompt, given that text."""


def plan_prompt(
    prompt: Prompt,
    layout: SchemaLayout,
    tokenizer: LayoutTokenizer,
    *,
    max_model_len: int,
    block_size: int,
    ending: Ending | None = None,
    promotes: bool,
    budgets: Budgets = DEFAULT_BUDGETS,
) -> PromptPlan:
    """Plans a prompt.

    An argument's tokens take the first positions of its parameter. New text before the last
    import takes positions that the schema leaves free, or moves what is behind them, see
    `TextPlacer.place`; in a compact layout it takes its place among the imports. Text behind the
    last import follows everything else. A role's wrapper is
    new text where the role begins and ends, also when imports stand inside of it. Where a user
    message is the last thing in the prompt, the template's generation prompt follows; in a chat
    whatever the conversation has there.

    Args:
        prompt: A parsed prompt.
        layout: The schema it names.
        tokenizer: The tokenizer that `layout` was compiled with.
        max_model_len: Positions the model has.
        block_size: Tokens in a KV cache block.
        ending: What follows the prompt in a chat, instead of the generation prompt.
        promotes: Whether the engine may encode its modules behind each other for later ones.
        budgets: What it may ask of the engine. A repair that its schema says and that would ask
            for more is left out.

    Raises:
        PMLError: A name is wrong, text or an argument does not fit, no position is left for a
            generated token, or the prompt is over a budget.
        UnsupportedError: The prompt uses roles, and the model's chat template cannot be taken
            apart.
    """
    resolved = resolve_prompt(prompt, layout, tokenizer, budgets)
    check_size(prompt, resolved, tokenizer, max_model_len)
    token_ids = tokenize(resolved, tokenizer)
    resolved, starts = _place(layout, resolved, token_ids)
    arguments = place_arguments(prompt, resolved, token_ids)
    text = place_text(resolved, token_ids, starts)
    if ending is not None:
        text.append(ending(text), text.end)
    elif resolved.has_roles and text.ends_with_user:
        text.append(tokenizer.generation_prompt, text.end)
    new = [*arguments, *text.new]
    chooser = ReuseChooser(prompt, layout, resolved.modules, new, block_size)
    plan = _plan(chooser, choose_within(chooser, budgets), promotes)
    check_bytes(prompt, plan, budgets.bytes_for(max_model_len))
    if plan.next_position >= max_model_len:
        message = (
            f"the prompt takes {plan.next_position} positions, which leaves none of the model's "
            f"{max_model_len} for an answer"
        )
        raise pml_error(prompt.source, prompt.location, message, "leave out modules or text")
    return plan


def _plan(chooser: ReuseChooser, reuse: Reuse, promotes: bool) -> PromptPlan:
    """Puts the plan together.

    Raises:
        PMLError: There is nothing to compute.
    """
    new = [*chooser.new, *reuse.repeated]
    if not new:
        prompt = chooser.prompt
        raise pml_error(prompt.source, prompt.location, "the prompt has no tokens")
    chain = chooser.promoted(reuse) if promotes else None
    return make_plan(chooser.layout, reuse.modules, new, block_size=chooser.block_size, chain=chain)


def _place(
    layout: SchemaLayout, resolved: ResolvedPrompt, token_ids: TokenIds
) -> tuple[ResolvedPrompt, list[int]]:
    """The prompt with its modules where they are in it, and where each inner text begins."""

    def num_tokens(group: TextGroup) -> int:
        return sum(len(token_ids[piece.placed]) for piece in group.pieces)

    return resolved.placed(layout, num_tokens)
