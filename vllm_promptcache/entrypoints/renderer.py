"""Prompts in PML on their way through vLLM's front end.

All front ends share a renderer, which turns a prompt into tokens, and an input processor, which
turns tokens into an engine request. The first one plans a PML prompt, the second one moves the plan
to where the scheduler finds it. Nothing else can: a client's own plan is dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from vllm.exceptions import VLLMClientError
from vllm.renderers.base import BaseRenderer
from vllm.renderers.registry import RENDERER_REGISTRY
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor

from vllm_promptcache.compat.wrap import wrap
from vllm_promptcache.entrypoints import detail
from vllm_promptcache.entrypoints.affinity import ModuleAffinity
from vllm_promptcache.entrypoints.chat import PMLChat, RenderedChat
from vllm_promptcache.entrypoints.ended import process_outputs
from vllm_promptcache.entrypoints.front_end import FrontEnd
from vllm_promptcache.entrypoints.planning_pool import PlanningPool
from vllm_promptcache.entrypoints.request_options import (
    REQUEST_FIELD,
    current_options,
    preprocess,
)
from vllm_promptcache.errors import FieldError, PlanError
from vllm_promptcache.plan import PromptPlan
from vllm_promptcache.pml import Prompt
from vllm_promptcache.sequence.codec import DETAIL_KEY, PLAN_KEY
from vllm_promptcache.tracing import trace_plan


class RequestRefused(PlanError, VLLMClientError):
    """A request whose parameters do not go with PML; vLLM's servers answer it with 400."""


# Under this key a plan travels from the renderer to the input processor, in one process.
PLAN_FIELD = "prompt_module_plan"


# Under these, paths of its modules, where the client wants to know about them; and the time that
# planning began and ended, in nanoseconds since the epoch.
_PATHS_FIELD = "prompt_module_paths"
_DURATION_FIELD = "prompt_module_plan_duration"


def planned_prompt(text: str, plan: PromptPlan, since_ns: int | None = None) -> dict[str, Any]:
    """A prompt for vLLM's front end that is planned already: since then, if that matters."""
    planned = {"prompt_token_ids": plan.prompt_token_ids, "prompt": text, PLAN_FIELD: plan}
    if since_ns is not None:
        planned[_DURATION_FIELD] = (since_ns, time.time_ns())
    modules = current_options().prompt_modules
    if modules is not None and modules.detail:
        planned[_PATHS_FIELD] = plan.paths
    return planned


def plan_of_client(prompt: Any) -> PromptPlan | None:
    """The plan of a PML prompt that a client has sent, and not of one that is to warm modules."""
    if not isinstance(prompt, Mapping) or _DURATION_FIELD not in prompt:
        return None
    return cast(PromptPlan, prompt[PLAN_FIELD])


def plan_if_pml(front_end: FrontEnd, prompt: Any, *, reuse: bool = True) -> Any:
    """Returns a prompt that is a PML document with its plan, and any other as it is.

    Args:
        front_end: Knows the schemas.
        prompt: A prompt as vLLM takes it: text, token ids, or a dict with one of them.
        reuse: Whether its modules are reused.

    Raises:
        PMLError: The document is not valid, or does not fit its schema.
        PlanError: The prompt holds something beside the document that does not go with it.
    """
    fields = prompt if isinstance(prompt, Mapping) else {"prompt": prompt}
    if PLAN_FIELD in fields:
        return prompt
    document = _document(front_end, fields)
    if document is None:
        return prompt
    if "prompt_embeds" in fields or "multi_modal_data" in fields:
        raise PlanError("a PML prompt cannot carry embeddings or multi-modal data")
    check_request()
    since_ns, salt = time.time_ns(), fields.get("cache_salt") or current_options().cache_salt
    plan = front_end.plan(document, reuse=reuse, salt=salt)
    text = fields["prompt"] if not current_options().has_echo else front_end.text_of(plan)
    return {**fields, **planned_prompt(text, plan, since_ns)}


def _is_to_plan(front_end: FrontEnd, prompt: Mapping[str, Any]) -> bool:
    """Whether there is something to plan, or to refuse; takes microseconds."""
    if PLAN_FIELD in prompt:
        return False
    text = prompt.get("prompt")
    return _has_form() or (isinstance(text, str) and front_end.is_pml(text))


def _has_form() -> bool:
    """Whether the request brings a prompt without markup, of which a tree is to be made."""
    modules = current_options().prompt_modules
    return modules is not None and modules.is_prompt


def check_request() -> None:
    """Refuses a PML prompt in requests that it does not go with.

    Raises:
        PlanError: The request is for beams; or for tokens, on a route whose clients need not be
            allowed to send prompts: these are the schema's text.
    """
    options = current_options()
    if options.has_beams:
        raise PlanError("beam search cannot be combined with a PML prompt")
    if options.is_tokenized:
        raise PlanError(
            "a PML prompt cannot be tokenized here", "use /v1/prompt_schemas/NAME/explain"
        )


def _document(front_end: FrontEnd, fields: Mapping[str, Any]) -> str | Prompt | None:
    """The PML document that a prompt is, or the tree of what its request asks for."""
    text = None if "prompt_token_ids" in fields else fields.get("prompt")
    is_pml = isinstance(text, str) and front_end.is_pml(text)
    modules = current_options().prompt_modules
    if modules is None or not modules.is_prompt:
        return text if is_pml else None
    if is_pml or not isinstance(text, str):
        raise PlanError("prompt_modules goes with a prompt of plain text")
    schema = front_end.find(modules.schema_name or "")
    document = modules.to_prompt(text, as_user=schema is not None and schema.has_roles)
    if not document.children:
        hint = "import a module or write some text"
        raise FieldError("an empty prompt", REQUEST_FIELD, hint)
    return document


class PromptModuleRenderer(BaseRenderer):
    """Mix-in for a renderer: plans prompts that are PML documents."""

    def __init__(self, config: Any, tokenizer: Any) -> None:
        super().__init__(config, tokenizer)
        self.front_end = FrontEnd.create(config, tokenizer)
        self.planning = PlanningPool()

    def render_messages(self, messages: Any, params: Any) -> Any:
        chat = PMLChat.find(messages, self.front_end.is_pml)
        if chat is None:
            return super().render_messages(messages, params)
        return self._plan_chat(chat, params, *super().render_messages(chat.messages, params))

    async def render_messages_async(self, messages: Any, params: Any) -> Any:
        if _has_form():
            chat = await self.planning.run(PMLChat.find, messages, self.front_end.is_pml)
        else:
            chat = PMLChat.find(messages, self.front_end.is_pml)
        if chat is None:
            return await super().render_messages_async(messages, params)
        rendered = await super().render_messages_async(chat.messages, params)
        return await self.planning.run(self._plan_chat, chat, params, *rendered)

    def _plan_chat(self, chat: PMLChat, params: Any, conversation: Any, prompt: Any) -> Any:
        check_request()
        if "multi_modal_data" in prompt:
            raise PlanError("a PML prompt cannot carry embeddings or multi-modal data")
        since_ns = time.time_ns()
        rendered = RenderedChat(chat, conversation, params, super().render_messages)
        salt = current_options().cache_salt
        plan = self.front_end.plan(chat.document, salt=salt, chat=rendered)
        shown = list(conversation)
        shown[chat.index] = {**shown[chat.index], "content": chat.text}
        return shown, planned_prompt(chat.text, plan, since_ns)

    def _tokenize_singleton_prompt(self, prompt: Any, params: Any) -> Any:
        planned = self._plan(prompt, params)
        return super()._tokenize_singleton_prompt(prompt, params) if planned is None else planned

    async def _tokenize_singleton_prompt_async(self, prompt: Any, params: Any) -> Any:
        if _is_to_plan(self.front_end, prompt):
            planned = await self.planning.run(self._plan, prompt, params)
        else:
            planned = self._plan(prompt, params)
        if planned is not None:
            return planned
        return await super()._tokenize_singleton_prompt_async(prompt, params)

    def _plan(self, prompt: Any, params: Any) -> dict[str, Any] | None:
        planned = plan_if_pml(self.front_end, prompt)
        if PLAN_FIELD not in planned:
            return None
        if getattr(params, "truncate_prompt_tokens", None) is not None:
            raise PlanError("a PML prompt cannot be truncated", "leave truncate_prompt_tokens out")
        return cast(dict[str, Any], planned)

    def _process_tokens(self, prompt: Any, **kwargs: Any) -> Any:
        return _keep_plan(prompt, super()._process_tokens(prompt, **kwargs))

    async def _process_tokens_async(self, prompt: Any, **kwargs: Any) -> Any:
        return _keep_plan(prompt, await super()._process_tokens_async(prompt, **kwargs))


def _keep_plan(prompt: Any, engine_input: Any) -> Any:
    for field in (PLAN_FIELD, _PATHS_FIELD, _DURATION_FIELD):
        if field in prompt:
            engine_input[field] = prompt[field]
    return engine_input


def process_inputs(
    original: Callable[..., Any],
    processor: InputProcessor,
    request_id: str,
    prompt: Any,
    params: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Wraps `InputProcessor.process_inputs`: attaches the plan, and nobody else's.

    Raises:
        RequestRefused: The parameters cannot be combined with prompt modules, or other tokens
            came with the plan than are planned.
    """
    plan = prompt.get(PLAN_FIELD) if isinstance(prompt, dict) else None
    _check(plan, params)
    request = original(processor, request_id, prompt, params, *args, **kwargs)
    if plan is not None:
        _check_tokens(plan, request.prompt_token_ids)
    sampling_params = request.sampling_params
    if sampling_params is not None:
        # vLLM's copy of the parameters shares this dict with the caller's: make a new one.
        extra_args = dict(sampling_params.extra_args or {})
        extra_args.pop(PLAN_KEY, None)
        extra_args.pop(DETAIL_KEY, None)
        if plan is not None:
            extra_args[PLAN_KEY] = plan.packed
            if (paths := prompt.get(_PATHS_FIELD)) is not None:
                extra_args[DETAIL_KEY] = paths
            room = processor.model_config.max_model_len - plan.next_position
            sampling_params.max_tokens = min(sampling_params.max_tokens, room)
        sampling_params.extra_args = extra_args or None
    observability = processor.vllm_config.observability_config
    if plan is not None and observability.otlp_traces_endpoint is not None:
        _trace(request, plan, prompt.get(_DURATION_FIELD))
    return request


def _check_tokens(plan: PromptPlan, token_ids: list[int]) -> None:
    if token_ids != plan.prompt_token_ids:
        raise RequestRefused(
            "the tokens of a PML prompt were changed on their way to the engine",
            "leave out what truncates or pads prompts",
        )


def _trace(request: Any, plan: PromptPlan, duration_ns: tuple[int, int] | None) -> None:
    """Makes the request part of a trace that shows how it was planned."""
    if duration_ns is not None:
        attributes = {
            "schema": plan.schema,
            "modules": len(plan.modules),
            "tokens": plan.num_tokens,
            "new_tokens": plan.num_new_tokens,
        }
        request.trace_headers = trace_plan(request.trace_headers, duration_ns, attributes)


def _check(plan: PromptPlan | None, params: Any) -> None:
    if plan is None:
        return
    if not isinstance(params, SamplingParams):
        raise RequestRefused("a PML prompt can be generated from, not pooled")
    if params.prompt_logprobs is not None:
        raise RequestRefused(
            "prompt_logprobs cannot be combined with a PML prompt",
            "tokens that modules provide are not computed, so they have no log-probabilities",
        )


def make_renderer(renderer_mode: str, config: Any, tokenizer: Any) -> BaseRenderer:
    """Makes vLLM's renderer for `renderer_mode`, with the mix-in.

    Also hooks the rest of the front end, without which a plan is of no use.
    """
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.renderers.online_renderer import OnlineRenderer
    from vllm.v1.engine.core_client import DPLBAsyncMPClient

    wrap(DPLBAsyncMPClient, "get_core_engine_for_request", ModuleAffinity().route)
    wrap(OnlineRenderer, "preprocess_cmpl", preprocess)
    wrap(OnlineRenderer, "preprocess_chat", preprocess)
    wrap(OpenAIServingCompletion, "request_output_to_completion_response", detail.in_completion)
    wrap(OpenAIServingCompletion, "completion_stream_generator", detail.in_stream)
    wrap(OpenAIServingChat, "chat_completion_full_generator", detail.in_chat)
    wrap(OpenAIServingChat, "chat_completion_stream_generator", detail.in_stream)
    wrap(InputProcessor, "process_inputs", process_inputs)
    wrap(OutputProcessor, "process_outputs", process_outputs)
    renderer_cls = RENDERER_REGISTRY.load_renderer_cls(renderer_mode)
    name = f"PromptModule{renderer_cls.__name__}"
    return type(name, (PromptModuleRenderer, renderer_cls), {})(config, tokenizer)
