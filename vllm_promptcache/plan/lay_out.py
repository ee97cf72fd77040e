"""Lays out a prompt against its schema (paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeAlias

from vllm_promptcache.layout.module_layout import ModuleLayout
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.plan.budgets import DEFAULT_BUDGETS, Budgets
from vllm_promptcache.plan.new_tokens import (
    Added,
    LayOut,
    NewText,
    check_size,
    place_arguments,
    place_text,
)
from vllm_promptcache.plan.prompt_plan import PromptPlan, make_plan
from vllm_promptcache.plan.resolve import resolve_prompt
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
    lay_out_inline: LayOut,
    max_model_len: int,
    block_size: int,
    before: str | None = None,
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
        lay_out_inline: Lays out a module that stands in the prompt.
        max_model_len: Positions the model has.
        block_size: Tokens in a KV cache block.
        before: Text of the schema right before the prompt's, see `PlacedText`; None if not known.
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
    resolved = resolve_prompt(prompt, layout, tokenizer, budgets, before)
    check_size(prompt, resolved, tokenizer, max_model_len)
    added = Added.of(resolved, tokenizer, lay_out_inline)
    resolved, starts = resolved.placed(layout, added.num_tokens)
    arguments = place_arguments(prompt, resolved, added)
    text = place_text(resolved, added, starts)
    if ending is not None:
        text.append(ending(text), text.end)
    elif resolved.has_roles and text.ends_with_user:
        text.append(tokenizer.generation_prompt, text.end)
    new = [*arguments, *text.new]
    if added.inline:
        layout = layout.with_inline(m for inline in added.inline.values() for m in inline.parts)
        is_exact = any(inline.is_exact for inline in added.inline.values())
        prompt = replace(prompt, is_exact=True) if is_exact else prompt
    inline = _inline(layout, text)
    chooser = ReuseChooser(prompt, layout, [*resolved.modules, *inline], new, block_size)
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


def _inline(layout: SchemaLayout, text: NewText) -> Iterator[ModuleLayout]:
    """The modules that stand in a prompt, where they stand; no two have the same path."""
    for number, (inline, position, name) in enumerate(text.inline, start=1):
        path = f"#{number}" if name is None else f"#{number} {name}"
        yield inline.at(layout, position, path)
