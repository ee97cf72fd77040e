"""Plans prompts: in PML or as a tree, alone or in a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from vllm_promptcache.errors import ClientError
from vllm_promptcache.plan.budgets import DEFAULT_BUDGETS, Budgets
from vllm_promptcache.plan.chat import Chat
from vllm_promptcache.plan.compiled import tenant_of
from vllm_promptcache.plan.conversation import LayOut, plan_in_chat
from vllm_promptcache.plan.lay_out import plan_prompt
from vllm_promptcache.plan.prompt_plan import PromptPlan, baseline
from vllm_promptcache.plan.schemas import Schemas
from vllm_promptcache.plan.warm import warm_plans
from vllm_promptcache.plan.written import WrittenText
from vllm_promptcache.pml import PROMPT_LIMITS, Limits, Prompt, parse_prompt, pml_error


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans prompts for one engine.

    May be used from many threads: a plan takes a schema as it is when it starts.

    Attributes:
        schemas: What prompts may name.
        block_size: Tokens in a KV cache block.
        promotes: Whether the engine may promote combinations of modules.
        budgets: What a prompt may ask of the engine.
        limits: What a prompt may ask of the parser.
    """

    schemas: Schemas
    block_size: int
    promotes: bool
    budgets: Budgets = DEFAULT_BUDGETS
    limits: Limits = PROMPT_LIMITS

    def plan(
        self,
        prompt: str | Prompt,
        *,
        reuse: bool = True,
        salt: str | None = None,
        chat: Chat | None = None,
    ) -> PromptPlan:
        """Plans a prompt.

        Args:
            prompt: The prompt in PML, or its tree.
            reuse: Whether modules are reused; if not, the plan is one plain prefill of the same
                tokens at the same positions.
            salt: The tenant's salt (`cache_salt` of a request), which a private schema needs.
            chat: The conversation that the prompt is in.

        Raises:
            PMLError: The prompt breaks a rule, or names a schema that is not there.
            PlanError: A chat cannot have it.
            UnsupportedError: It uses roles, and the chat template cannot be taken apart.
        """
        if isinstance(prompt, str):
            prompt = parse_prompt(prompt, limits=self.limits)
        compiler, lay_out = self.schemas.compiler, self._lay_out(salt, reuse=reuse)
        if prompt.schema is None:
            beginning, tokenizer = compiler.beginning(prompt)
            compiled = self.schemas.nameless(beginning, tenant_of(salt))
            prompt = compiler.allowed(prompt, compiled.layout)
            plan = lay_out(prompt, compiled.layout, tokenizer, before=beginning or None)
            return plan if reuse else baseline(plan)
        try:
            compiled = self.schemas.get(prompt.schema)
            tenant = compiled.tenant(salt)
        except ClientError as error:
            raise pml_error(prompt.source, prompt.location, error.message, error.hint) from None
        prompt = compiler.allowed(prompt, compiled.layout)
        if chat is None:
            written = compiler.for_text(compiled, prompt, tenant)
            plan = lay_out(prompt, written.layout, written.tokenizer)
        else:
            plan = plan_in_chat(prompt, compiled, chat, tenant, compiler, lay_out)
        return plan if reuse else baseline(plan)

    def plan_written(self, written: WrittenText, *, salt: str | None = None) -> PromptPlan:
        """Plans a prompt that a chat template has written, for a tenant.

        Raises:
            PMLError: It does not fit the model, or is over a budget.
        """
        compiled = self.schemas.nameless(written.beginning, tenant_of(salt), is_chat=True)
        prompt = self.schemas.compiler.allowed(written.prompt, compiled.layout)
        lay_out, before = self._lay_out(salt, reuse=True), written.beginning or None
        return lay_out(prompt, compiled.layout, compiled.tokenizer, before=before)

    def _lay_out(self, salt: str | None, *, reuse: bool) -> LayOut:
        return partial(
            plan_prompt,
            lay_out_inline=partial(self.schemas.inline.get, tenant=tenant_of(salt)),
            max_model_len=self.schemas.compiler.max_model_len,
            block_size=self.block_size,
            promotes=self.promotes and reuse,
            budgets=self.budgets,
        )

    def warm_plans(self, name: str, *, salt: str | None = None) -> Iterator[PromptPlan]:
        """Plans that make the engine encode all modules of a schema ahead of its prompts.

        Each is made when it is asked for: there may be thousands.

        Raises:
            ClientError: There is no schema of that name, or it is private and there is no salt.
        """
        compiled = self.schemas.get(name)
        written = self.schemas.compiler.for_text(compiled, None, compiled.tenant(salt))
        return warm_plans(written.layout, block_size=self.block_size)
