"""Prompts in PML on their way to a request for the engine.

vLLM's renderer turns a prompt into tokens, and plans it here if it is PML. The plan travels in
fields of the prompt, within the process, to vLLM's input processor: that makes an engine request of
the tokens, and moves the plan to where the scheduler finds it. Nothing else can: a client's own
plan is dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from vllm.exceptions import VLLMClientError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.input_processor import InputProcessor

from vllm_promptcache.entrypoints.front_end import FrontEnd
from vllm_promptcache.entrypoints.request_options import (
    REQUEST_FIELD,
    PromptModules,
    RequestOptions,
    current_options,
)
from vllm_promptcache.errors import FieldError, PlanError
from vllm_promptcache.plan import PromptPlan
from vllm_promptcache.pml import Prompt
from vllm_promptcache.sequence.codec import DETAIL_KEY, PLAN_KEY
from vllm_promptcache.tracing import trace_plan

NO_EMBEDDINGS = "a PML prompt cannot carry embeddings or multi-modal data"

# Under this key a plan travels.
PLAN_FIELD = "prompt_module_plan"

# Under these, what its modules are called and read as, where the client wants to know about them;
# and the time that planning began and ended, in nanoseconds since the epoch.
_DETAIL_FIELD = "prompt_module_detail"
_DURATION_FIELD = "prompt_module_plan_duration"


class RequestRefused(PlanError, VLLMClientError):
    """A request whose parameters do not go with PML; vLLM's servers answer it with 400."""


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
    options = current_options()
    if not is_to_plan(front_end, fields, options):
        return prompt
    return plan_request(front_end, fields, options, reuse=reuse)


def is_to_plan(front_end: FrontEnd, prompt: Mapping[str, Any], options: RequestOptions) -> bool:
    """Whether there is something to plan, or to refuse; takes microseconds."""
    if PLAN_FIELD in prompt:
        return False
    text = None if "prompt_token_ids" in prompt else prompt.get("prompt")
    if options.form is not None:
        return True
    return options.reads_pml and isinstance(text, str) and front_end.is_pml(text)


def plan_request(
    front_end: FrontEnd, prompt: Mapping[str, Any], options: RequestOptions, *, reuse: bool = True
) -> dict[str, Any]:
    """A prompt with its plan. Raises as `plan_if_pml`."""
    form = options.form
    document = prompt["prompt"] if form is None else _to_tree(front_end, prompt, form)
    if "prompt_embeds" in prompt or "multi_modal_data" in prompt:
        raise PlanError(NO_EMBEDDINGS)
    options.check()
    since_ns, salt = time.time_ns(), prompt.get("cache_salt") or options.cache_salt
    plan = front_end.plan(document, reuse=reuse, salt=salt)
    text = front_end.text_of(plan) if options.has_echo else prompt["prompt"]
    return {**prompt, **planned_prompt(text, plan, since_ns, has_detail=options.has_detail)}


def _to_tree(front_end: FrontEnd, prompt: Mapping[str, Any], form: PromptModules) -> Prompt:
    """The tree of what a request with a prompt of plain text asks for."""
    text = None if "prompt_token_ids" in prompt else prompt.get("prompt")
    if not isinstance(text, str) or front_end.is_pml(text):
        raise PlanError("prompt_modules goes with a prompt of plain text")
    schema = front_end.find(form.schema_name or "")
    tree = form.to_prompt(text, as_user=schema is not None and schema.has_roles)
    if not tree.children:
        hint = "import a module or write some text"
        raise FieldError("an empty prompt", REQUEST_FIELD, hint)
    return tree


def planned_prompt(
    text: str, plan: PromptPlan, since_ns: int | None = None, *, has_detail: bool = False
) -> dict[str, Any]:
    """A prompt for vLLM's front end that is planned already.

    Args:
        text: The prompt as the client shall see it.
        plan: Its plan.
        since_ns: When planning began, where a client has sent it.
        has_detail: Whether the response tells what was reused.
    """
    planned = {"prompt_token_ids": plan.prompt_token_ids, "prompt": text, PLAN_FIELD: plan}
    if since_ns is not None:
        planned[_DURATION_FIELD] = (since_ns, time.time_ns())
    if has_detail:
        planned[_DETAIL_FIELD] = plan.detail
    return planned


def plan_of_client(prompt: Any) -> PromptPlan | None:
    """The plan of a PML prompt that a client has sent, and not of one that is to warm modules."""
    if not isinstance(prompt, Mapping) or _DURATION_FIELD not in prompt:
        return None
    return cast(PromptPlan, prompt[PLAN_FIELD])


def keep_plan(prompt: Any, engine_input: Any) -> Any:
    """Returns what vLLM has made of a prompt, with the prompt's plan."""
    for field in (PLAN_FIELD, _DETAIL_FIELD, _DURATION_FIELD):
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
            if (detail := prompt.get(_DETAIL_FIELD)) is not None:
                extra_args[DETAIL_KEY] = detail
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
