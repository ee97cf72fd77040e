"""Short ways to plan a prompt and to look at the outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.layout.templates import CHATML
from tests.layout.word_tokenizer import WordTokenizer
from vllm_promptcache.config import PromptModulesConfig
from vllm_promptcache.errors import PMLError
from vllm_promptcache.layout import LayoutTokenizer
from vllm_promptcache.plan import Planner, PromptPlan
from vllm_promptcache.plan.budgets import DEFAULT_BUDGETS, Budgets
from vllm_promptcache.plan.compiled import Gate, SchemaCompiler
from vllm_promptcache.plan.schemas import Schemas
from vllm_promptcache.pml import PROMPT_LIMITS, Limits, parse_schema
from vllm_promptcache.policies import Policy
from vllm_promptcache.sequence.block_table import BlockTable

USERS = PromptModulesConfig()
"""The options that users have without saying any."""

PAPER = PromptModulesConfig(encode="isolated", repair="none", promote_after=0)
"""Each module by itself, as in the paper, so that what is new can be counted by hand."""


def make_planner(
    tokenizer: Any,
    options: PromptModulesConfig = USERS,
    *,
    max_model_len: int,
    block_size: int,
    policy: Policy | None = None,
    gate: Gate | None = None,
    budgets: Budgets = DEFAULT_BUDGETS,
    limits: Limits = PROMPT_LIMITS,
    on_remove: Callable[[str], None] | None = None,
) -> Planner:
    """Makes a planner with its schemas, as a front end with some options has it."""
    policy = policy or options.policy
    compiler = SchemaCompiler(LayoutTokenizer(tokenizer), max_model_len, policy, gate)
    promotes = options.promote_after > 0
    return Planner(Schemas(compiler, on_remove), block_size, promotes, budgets, limits)


def engine_order(plan: PromptPlan) -> list[int]:
    """The tokens of a plan as the engine has them: full blocks, tails, new tokens."""
    return BlockTable.of(plan.sequence, plan.block_size).arrange(plan.module_prompt.tokens)


class Prompts:
    """Plans prompts for one schema, named `s`, whose modules are isolated unless it says more.

    Args:
        children: The schema's children.
        attributes: The schema's further attributes.
        tokenizer: One token a word, unless another one is given.
        block_size: Tokens in a KV cache block.
        max_model_len: Positions the model has.
        options: What schemas and prompts do not say.
        budgets: What a prompt may ask of the engine.
    """

    def __init__(
        self,
        children: str,
        attributes: str = "",
        *,
        tokenizer: WordTokenizer | None = None,
        block_size: int = 4,
        max_model_len: int = 1000,
        options: PromptModulesConfig = USERS,
        budgets: Budgets = DEFAULT_BUDGETS,
    ) -> None:
        self.words = tokenizer or WordTokenizer(CHATML)
        self.planner = make_planner(
            self.words,
            options,
            max_model_len=max_model_len,
            block_size=block_size,
            budgets=budgets,
        )
        schema = parse_schema(f'<schema name="s" {attributes}>{children}</schema>')
        self.layout = self.planner.schemas.add(schema)

    def plan(self, children: str, *, reuse: bool = True) -> PromptPlan:
        """Plans a prompt with these children."""
        return self.planner.plan(f'<prompt schema="s">{children}</prompt>', reuse=reuse)

    def refused(self, children: str) -> PMLError:
        """Returns the error that planning raises."""
        with pytest.raises(PMLError) as caught:
            self.plan(children)
        return caught.value

    def new(self, children: str) -> dict[int, str]:
        """New words of a prompt by position."""
        return {
            tokens.start + number: self.words.words[token_id]
            for tokens in self.plan(children).new
            for number, token_id in enumerate(tokens.token_ids)
        }

    def new_text(self, children: str) -> str:
        """New words of a prompt in the order of their positions."""
        return " ".join(self.new(children).values())

    def paths(self, children: str) -> list[str]:
        """Cached modules of a prompt in the order of the block table."""
        return [planned.layout.path for planned in self.plan(children).modules]


class PaperPrompts(Prompts):
    """The same with the options `PAPER`.

    Args:
        promotes: Whether plans say how they could be exact.
    """

    def __init__(
        self, children: str, attributes: str = "", *, promotes: bool = False, **kwargs: Any
    ) -> None:
        options = replace(PAPER, promote_after=int(promotes))
        super().__init__(children, attributes, options=options, **kwargs)


def column(error: PMLError, what: str) -> None:
    """Checks that an error's caret stands at `what`."""
    assert error.source_line[error.caret :].startswith(what)
    assert error.column == error.caret + 1
