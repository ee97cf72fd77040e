"""Plans a prompt within a conversation, for the chat template as the request uses it."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from vllm_promptcache.errors import UnsupportedError
from vllm_promptcache.layout.roles import ChatRoles
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.layout.template_roles import TemplateRoles
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.plan.chat import Chat, TemplateChanged, turns
from vllm_promptcache.plan.compiled import Compiled, SchemaCompiler, Surroundings
from vllm_promptcache.plan.lay_out import Ending
from vllm_promptcache.plan.messages import prompt_in_messages, system_text
from vllm_promptcache.plan.prompt_plan import PromptPlan
from vllm_promptcache.pml.ast import Prompt


class LayOut(Protocol):
    """`plan_prompt` for an engine."""

    def __call__(
        self,
        prompt: Prompt,
        layout: SchemaLayout,
        tokenizer: LayoutTokenizer,
        *,
        before: str | None = None,
        ending: Ending | None = None,
    ) -> PromptPlan: ...


def plan_in_chat(
    prompt: Prompt,
    compiled: Compiled,
    chat: Chat,
    tenant: bytes,
    compiler: SchemaCompiler,
    lay_out: LayOut,
) -> PromptPlan:
    """Plans a prompt as the first messages of a conversation.

    Args:
        prompt: The prompt.
        compiled: Its schema.
        chat: The conversation.
        tenant: Whose prompt it is, see `Compiled.tenant`.
        compiler: Lays the schema out as the conversation has it.
        lay_out: Plans a prompt for that.

    Raises:
        PMLError: The prompt does not fit its schema, or the conversation the model.
        PlanError: A chat cannot have it.
        UnsupportedError: The chat template does not write it as it writes plain messages.
    """
    own = compiler.tokenizer
    roles = own.template.known(chat.key) or _read(own.template, chat)
    # What the request has not changed may have changed by itself: the date, say.
    for _ in range(2):
        system = system_text(chat, compiled.schema, roles, bos=own.bos_text)
        around = Surroundings(roles, is_chat=True, system=system, tenant=tenant)
        found = compiler.variant(compiled, around)
        arranged, tokenizer = prompt_in_messages(prompt, chat, found.schema), found.tokenizer
        ending = partial(turns, arranged, chat, tokenizer, compiler.max_model_len)
        try:
            return lay_out(arranged, found.layout, tokenizer, ending=ending)
        except TemplateChanged:
            roles = _read(own.template, chat)
    raise UnsupportedError(
        "the model's chat template writes the messages of this conversation in another way "
        "than it writes plain ones, so their text cannot be known beforehand",
        "leave out what the template writes into messages, such as tools",
    )


def _read(template: TemplateRoles, chat: Chat) -> ChatRoles:
    try:
        return template.read(chat.key, chat.render)
    except UnsupportedError as error:
        hint = "leave out what the request gives the template (tools, say), or use completions"
        raise UnsupportedError(error.message, hint) from error
