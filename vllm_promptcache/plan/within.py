"""Holds a prompt to its budgets."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache

from vllm_promptcache.errors import PMLError
from vllm_promptcache.plan.budgets import Budgets
from vllm_promptcache.plan.prompt_plan import PromptPlan, num_attention_rows
from vllm_promptcache.plan.reuse import Reuse, ReuseChooser
from vllm_promptcache.pml.ast import Prompt
from vllm_promptcache.pml.diagnostics import pml_error
from vllm_promptcache.policies import NO_REPAIR

# Below vLLM's own loggers; `vllm_promptcache.log` would import vLLM.
_logger = logging.getLogger(f"vllm.{__name__}")
# Schemas of which it is remembered that a warning was given.
_MAX_NUM_WARNED = 64


def choose_within(chooser: ReuseChooser, budgets: Budgets) -> Reuse:
    """Says how the modules of a prompt are used, within a budget of rows of attention.

    A repair that would take more and that the prompt itself does not ask for is left out.

    Raises:
        PMLError: There are more rows than that all the same.
    """
    prompt, reuse = chooser.prompt, chooser.choose()
    if (num_rows := _num_rows(chooser, reuse)) <= budgets.max_rows:
        return reuse
    if prompt.repair is None:
        reuse = replace(chooser, prompt=replace(prompt, repair=NO_REPAIR)).choose()
        if (num_rows := _num_rows(chooser, reuse)) <= budgets.max_rows:
            _warn(chooser.layout.name)
            return reuse
    raise _too_many_rows(prompt, num_rows, budgets.max_rows)


def check_bytes(prompt: Prompt, plan: PromptPlan, max_bytes: int) -> None:
    """Refuses a plan that is too large to travel to the engine.

    Raises:
        PMLError: It has more than `max_bytes`.
    """
    if (num_bytes := len(plan.packed)) > max_bytes:
        message = f"the prompt's plan has {num_bytes} bytes, more than {max_bytes}"
        raise pml_error(prompt.source, prompt.location, message, "import fewer modules")


def _num_rows(chooser: ReuseChooser, reuse: Reuse) -> int:
    return num_attention_rows(reuse.modules, [*chooser.new, *reuse.repeated])


def _too_many_rows(prompt: Prompt, num_rows: int, max_rows: int) -> PMLError:
    message = (
        f"the prompt takes {num_rows} rows of attention, more than {max_rows}: one for each group "
        "of new tokens with modules behind it"
    )
    hint = 'put arguments and text behind the modules, or write `encode="exact"`'
    if prompt.repair is not None:
        hint = "leave out `repair`, or repair less"
    return pml_error(prompt.source, prompt.location, message, hint)


@lru_cache(_MAX_NUM_WARNED)
def _warn(schema: str) -> None:
    _logger.warning("Prompts of schema %s take too many rows of attention to be repaired", schema)
