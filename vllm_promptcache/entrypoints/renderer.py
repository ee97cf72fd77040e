"""vLLM's renderer, which all its front ends share, with prompts in PML; see `engine_request`."""

from __future__ import annotations

import time
from typing import Any

from vllm.renderers.base import BaseRenderer
from vllm.renderers.registry import RENDERER_REGISTRY
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor

from vllm_promptcache.compat.wrap import wrap
from vllm_promptcache.entrypoints import detail
from vllm_promptcache.entrypoints.affinity import ModuleAffinity
from vllm_promptcache.entrypoints.anthropic_marks import read_marks
from vllm_promptcache.entrypoints.chat import PMLChat, RenderedChat
from vllm_promptcache.entrypoints.ended import process_outputs
from vllm_promptcache.entrypoints.engine_request import (
    NO_EMBEDDINGS,
    PLAN_FIELD,
    is_to_plan,
    keep_plan,
    plan_request,
    planned_prompt,
    process_inputs,
)
from vllm_promptcache.entrypoints.front_end import FrontEnd
from vllm_promptcache.entrypoints.marked_chat import MarkedChat
from vllm_promptcache.entrypoints.marks import MarkReader
from vllm_promptcache.entrypoints.plan_errors import count_unread_marks
from vllm_promptcache.entrypoints.planning_pool import PlanningPool
from vllm_promptcache.entrypoints.request_options import (
    PromptModules,
    RequestOptions,
    current_options,
    preprocess,
)
from vllm_promptcache.errors import PlanError, PromptCacheError, UnsupportedError


class PromptModuleRenderer(BaseRenderer):
    """Mix-in for a renderer: plans prompts that are PML documents."""

    def __init__(self, config: Any, tokenizer: Any) -> None:
        super().__init__(config, tokenizer)
        self.front_end = FrontEnd.create(config, tokenizer)
        self.planning = PlanningPool()

    def render_messages(self, messages: Any, params: Any) -> Any:
        options = current_options()
        reader = self._reader(options)
        chat = PMLChat.find(messages, options.form, reader.kind_of)
        if chat is not None:
            rendered = super().render_messages(chat.messages, params)
            return self._plan_chat(chat, params, options, *rendered)
        if not reader.has_modules(messages):
            return super().render_messages(messages, params)
        marked = MarkedChat.of(messages, reader)
        rendered = super().render_messages(marked.messages, params)
        return self._plan_marked(marked, params, options, *rendered)

    async def render_messages_async(self, messages: Any, params: Any) -> Any:
        options = current_options()
        reader = self._reader(options)
        chat = PMLChat.find(messages, options.form, reader.kind_of)
        if chat is not None:
            rendered = await super().render_messages_async(chat.messages, params)
            return await self.planning.run(self._plan_chat, chat, params, options, *rendered)
        if not reader.has_modules(messages):
            return await super().render_messages_async(messages, params)
        marked = await self.planning.run(MarkedChat.of, messages, reader)
        rendered = await super().render_messages_async(marked.messages, params)
        return await self.planning.run(self._plan_marked, marked, params, options, *rendered)

    def _reader(self, options: RequestOptions) -> MarkReader:
        reads_marks = self.front_end.reads_marks and options.has_marks
        kind_of = self.front_end.kind_of if options.reads_pml else _no_pml
        return MarkReader(kind_of, reads_marks, frozenset(options.marked_texts))

    def _plan_marked(
        self, marked: MarkedChat, params: Any, options: RequestOptions, chat: Any, prompt: Any
    ) -> Any:
        """A conversation with modules in it; as plain vLLM has it where these cannot be read."""
        since_ns, text = time.time_ns(), prompt.get("prompt")
        if not (marked.has_modules and options.has_marks):
            return chat, prompt
        try:
            if not isinstance(text, str) or "multi_modal_data" in prompt:
                raise UnsupportedError("the prompt is more than text")
            written = marked.written(text, self._probed(marked, params))
            plan = self.front_end.plan_written(written, salt=options.cache_salt)
        except PromptCacheError as error:
            count_unread_marks(error)
            return chat, prompt
        return chat, planned_prompt(text, plan, since_ns, has_detail=options.has_detail)

    def _probed(self, marked: MarkedChat, params: Any) -> str:
        try:
            _, probed = super().render_messages(marked.probed, params)
        # Templates raise whatever they like, of probes too.
        except Exception as error:
            message = f"the model's chat template does not write messages with probes: {error}"
            raise UnsupportedError(message) from error
        return str(probed["prompt"])

    def _plan_chat(
        self, chat: PMLChat, params: Any, options: RequestOptions, conversation: Any, prompt: Any
    ) -> Any:
        options.check()
        if "multi_modal_data" in prompt:
            raise PlanError(NO_EMBEDDINGS)
        since_ns, document = time.time_ns(), chat.document
        tree = document.to_prompt("") if isinstance(document, PromptModules) else document
        rendered = RenderedChat(chat, conversation, params, super().render_messages)
        plan = self.front_end.plan(tree, salt=options.cache_salt, chat=rendered)
        shown = list(conversation)
        shown[chat.index] = {**shown[chat.index], "content": chat.text}
        return shown, planned_prompt(chat.text, plan, since_ns, has_detail=options.has_detail)

    def _tokenize_singleton_prompt(self, prompt: Any, params: Any) -> Any:
        options = current_options()
        if is_to_plan(self.front_end, prompt, options):
            prompt = plan_request(self.front_end, prompt, options)
        if PLAN_FIELD not in prompt:
            return super()._tokenize_singleton_prompt(prompt, params)
        return _untruncated(prompt, params)

    async def _tokenize_singleton_prompt_async(self, prompt: Any, params: Any) -> Any:
        options = current_options()
        if is_to_plan(self.front_end, prompt, options):
            prompt = await self.planning.run(plan_request, self.front_end, prompt, options)
        if PLAN_FIELD not in prompt:
            return await super()._tokenize_singleton_prompt_async(prompt, params)
        return _untruncated(prompt, params)

    def _process_tokens(self, prompt: Any, **kwargs: Any) -> Any:
        return keep_plan(prompt, super()._process_tokens(prompt, **kwargs))

    async def _process_tokens_async(self, prompt: Any, **kwargs: Any) -> Any:
        return keep_plan(prompt, await super()._process_tokens_async(prompt, **kwargs))


def _no_pml(text: str) -> None:
    return None


def _untruncated(prompt: Any, params: Any) -> Any:
    if getattr(params, "truncate_prompt_tokens", None) is not None:
        raise PlanError("a PML prompt cannot be truncated", "leave truncate_prompt_tokens out")
    return prompt


def make_renderer(renderer_mode: str, config: Any, tokenizer: Any) -> BaseRenderer:
    """Makes vLLM's renderer for `renderer_mode`, with the mix-in.

    Also hooks the rest of the front end, without which a plan is of no use.
    """
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.renderers.online_renderer import OnlineRenderer
    from vllm.v1.engine.core_client import DPLBAsyncMPClient

    read_marks()
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
