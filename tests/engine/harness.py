"""Real engines in this process."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm.model_executor.models import registry

from vllm_promptcache import LLM, SamplingParams
from vllm_promptcache.core.request import ModularRequest
from vllm_promptcache.entrypoints.request_options import PromptModules, RequestOptions
from vllm_promptcache.quality.evaluate.engine import shut_down

MAX_TOKENS = 16
MAX_MODEL_LEN = 2048
DETAIL = RequestOptions(prompt_modules=PromptModules(detail=True))
MODULES_ALONE = {"repair": "none", "promote_after": 0}
ENGINE_ARGS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": MAX_MODEL_LEN,
    "max_num_seqs": 16,
    "max_logprobs": -1,
    "disable_log_stats": False,
}

# vLLM looks at each new class of models in a process of its own, lest CUDA starts in this one; that
# process imports vLLM anew, which takes seconds.
registry._run_in_subprocess = lambda look: look()


@contextmanager
def running_engine(model: Path, **engine_args: Any) -> Iterator[LLM]:
    """Starts an engine with `ENGINE_ARGS` and `engine_args`, and takes all of it down again.

    Modules are neither repaired nor promoted unless `engine_args` say so.
    """
    modules = MODULES_ALONE | engine_args.pop("prompt_modules", {})
    # vLLM collects garbage five times while it starts, most of the time that takes; what is there
    # now is none. It thaws everything when it ends.
    gc.freeze()
    llm = LLM(str(model), **(ENGINE_ARGS | engine_args | {"prompt_modules": modules}))
    try:
        yield llm
    finally:
        shut_down(llm)


def scheduler_of(llm: LLM) -> Any:
    """The engine's scheduler, a `PromptModuleMixin`."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def idle(llm: LLM) -> None:
    """Lets an engine without requests do what it has put off."""
    while scheduler_of(llm).has_requests():
        llm.llm_engine.step()


@contextmanager
def counted_tokens(llm: LLM) -> Iterator[list[int]]:
    """Yields a list that gets the number of tokens the engine computes in each step."""
    scheduler, counts = scheduler_of(llm), []
    schedule = scheduler.schedule

    def counting_schedule(*args: Any) -> Any:
        output = schedule(*args)
        counts.append(output.total_num_scheduled_tokens)
        return output

    scheduler.schedule = counting_schedule
    try:
        yield counts
    finally:
        del scheduler.schedule


def noted_requests(llm: LLM) -> dict[str, ModularRequest]:
    """Returns a dict that gets the scheduler's state of each request, by the engine's id."""
    residency, requests = scheduler_of(llm).residency, dict[str, ModularRequest]()
    add = residency.add

    def noting(request: Any) -> None:
        add(request)
        if (modular := residency.get(request)) is not None:
            requests[request.request_id] = modular

    residency.add = noting
    return requests


def greedy(num_logprobs: int, max_tokens: int = MAX_TOKENS, **others: Any) -> SamplingParams:
    """Greedy sampling of exactly `max_tokens` tokens; -1 stands for all log-probabilities."""
    return SamplingParams(
        temperature=0.0,
        max_tokens=max_tokens,
        logprobs=num_logprobs,
        ignore_eos=True,
        detokenize=False,
        **others,
    )


def modules_only(params: SamplingParams) -> SamplingParams:
    """The same without reuse of what earlier prompts have behind their modules."""
    params.skip_reading_prefix_cache = True
    return params
