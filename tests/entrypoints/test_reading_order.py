"""Prompt tokens as clients see them: by position, while the engine has them by block."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.request import Request
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from tests.plan.planning import Prompts
from vllm_promptcache.entrypoints import reading_order as hooks
from vllm_promptcache.entrypoints.renderer import (
    RequestRefused,
    plan_if_pml,
    planned_prompt,
    process_inputs,
)
from vllm_promptcache.entrypoints.request_options import RequestOptions, applied
from vllm_promptcache.plan import PromptPlan
from vllm_promptcache.plan.prompt_plan import reading_order
from vllm_promptcache.pml import is_prompt

SCHEMA = """r r <module name="a">a1 a2 a3 a4 a5</module><module name="b">b1 b2 b3</module>
    <module name="c">c1 <param name="x" len="2"/> c2 c3</module>"""
DOCUMENT = '<a/> one <b/> two <c x="v w"/> three'
TEXT = "r r a1 a2 a3 a4 a5 one b1 b2 b3 two c1 v w c2 c3 three"


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts(SCHEMA)


def request_of(plan: PromptPlan, tokens: list[int] | None = None, **kwargs: Any) -> Any:
    """The request that vLLM makes of a prompt."""
    prompt = planned_prompt("text", plan)
    if tokens is not None:
        prompt["prompt_token_ids"] = tokens

    def original(processor: Any, request_id: str, prompt: Any, params: Any) -> EngineCoreRequest:
        return EngineCoreRequest(
            request_id=request_id,
            external_req_id="client's",
            prompt_token_ids=prompt["prompt_token_ids"],
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )

    observability = SimpleNamespace(otlp_traces_endpoint=None)
    processor: Any = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=1000),
        vllm_config=SimpleNamespace(observability_config=observability),
    )
    return process_inputs(original, processor, "1", prompt, SamplingParams(**kwargs))


def add_request(processor: OutputProcessor, *args: Any) -> None:
    hooks.add_request(OutputProcessor.add_request, processor, *args)


@pytest.mark.parametrize("reuse", [True, False])
def test_a_client_reads_what_the_engine_has_by_block(prompts: Prompts, reuse: bool) -> None:
    plan = prompts.plan(DOCUMENT, reuse=reuse)
    request = request_of(plan)
    processor = OutputProcessor(None, log_stats=False)
    add_request(processor, request, "text")
    state = processor.request_states["1"]
    assert prompts.words.text(state.prompt_token_ids) == TEXT
    assert request.prompt_token_ids == plan.prompt_token_ids
    sent = MsgpackDecoder(EngineCoreRequest).decode(MsgpackEncoder().encode(request))
    assert sent.prompt_token_ids == plan.prompt_token_ids
    # An engine in the same process gets the request itself.
    kept = Request.from_engine_core_request(request, None)
    assert list(kept.all_token_ids) == kept.prompt_token_ids == plan.prompt_token_ids
    worker: Any = pickle.loads(pickle.dumps(request.prompt_token_ids))
    assert worker == plan.prompt_token_ids


def test_so_it_is_where_a_request_has_several_answers(prompts: Prompts) -> None:
    plan = prompts.plan(DOCUMENT)
    parent = ParentRequest(request_of(plan, n=2))
    processor = OutputProcessor(None, log_stats=False)
    for index in range(2):
        request = request_of(plan)
        request.request_id, request.sampling_params = parent.get_child_info(index)
        add_request(processor, request, "text", parent, index)
        assert request.prompt_token_ids == plan.prompt_token_ids
    for state in processor.request_states.values():
        assert prompts.words.text(state.prompt_token_ids) == TEXT


def test_the_order_of_a_plain_prompt_is_its_own() -> None:
    processor = OutputProcessor(None, log_stats=False)
    request = SimpleNamespace(prompt_token_ids=[3, 1, 2])
    calls: list[Any] = []
    hooks.add_request(lambda *args: calls.append(args), processor, request, "text")
    assert calls == [(processor, request, "text")]


def test_who_drops_the_plan_has_the_text(prompts: Prompts) -> None:
    planned = planned_prompt("text", prompts.plan(DOCUMENT))
    assert prompts.words.text(planned["prompt_token_ids"]) == TEXT


def test_a_plan_is_for_its_own_tokens_only(prompts: Prompts) -> None:
    plan = prompts.plan(DOCUMENT)
    for tokens in (plan.prompt_token_ids, plan.prompt_token_ids[:-1], [1]):
        with pytest.raises(RequestRefused, match="were changed on their way"):
            request_of(plan, list(tokens))


@pytest.mark.parametrize(("has_echo", "kept"), [(True, TEXT), (False, DOCUMENT)])
def test_an_echo_is_the_document_as_read(prompts: Prompts, has_echo: bool, kept: str) -> None:
    front_end: Any = SimpleNamespace(
        is_pml=is_prompt,
        plan=lambda text, **options: prompts.planner.plan(text),
        text_of=lambda plan: prompts.words.text(reading_order(plan)),
    )
    request = SimpleNamespace(echo=has_echo)
    with applied(RequestOptions.of(request)):
        planned = plan_if_pml(front_end, f'<prompt schema="s">{DOCUMENT}</prompt>')
    assert kept in planned["prompt"]
