"""Prompt tokens in the order of reading: everywhere but in the engine, which has them by block."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.request import Request
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from tests.plan.planning import Prompts, engine_order
from vllm_promptcache.core.residency import ModuleResidency
from vllm_promptcache.entrypoints.engine_request import (
    RequestRefused,
    plan_if_pml,
    planned_prompt,
    process_inputs,
)
from vllm_promptcache.entrypoints.request_options import RequestOptions, applied
from vllm_promptcache.plan import PromptPlan
from vllm_promptcache.pml import is_prompt

BLOCK_SIZE = 4
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


@pytest.mark.parametrize("reuse", [True, False])
def test_a_client_reads_what_the_engine_is_sent(prompts: Prompts, reuse: bool) -> None:
    request = request_of(prompts.plan(DOCUMENT, reuse=reuse))
    processor = OutputProcessor(None, log_stats=False)
    processor.add_request(request, "text")
    assert prompts.words.text(processor.request_states["1"].prompt_token_ids) == TEXT
    sent = MsgpackDecoder(EngineCoreRequest).decode(MsgpackEncoder().encode(request))
    assert sent.prompt_token_ids == request.prompt_token_ids


def test_an_engine_in_the_same_process_puts_its_own_tokens_in_order(prompts: Prompts) -> None:
    plan = prompts.plan(DOCUMENT)
    request = request_of(plan)
    modular = Request.from_engine_core_request(request, None)
    residency = ModuleResidency(BlockPool(33, True, BLOCK_SIZE), BLOCK_SIZE)
    residency.add(modular)
    assert modular.prompt_token_ids == list(modular.all_token_ids) == engine_order(plan)
    assert modular.prompt_token_ids != request.prompt_token_ids
    assert prompts.words.text(request.prompt_token_ids) == TEXT


def test_who_drops_the_plan_has_the_text(prompts: Prompts) -> None:
    planned = planned_prompt("text", prompts.plan(DOCUMENT))
    assert prompts.words.text(planned["prompt_token_ids"]) == TEXT


def test_a_plan_is_for_its_own_tokens_only(prompts: Prompts) -> None:
    plan = prompts.plan(DOCUMENT)
    for tokens in (engine_order(plan), plan.prompt_token_ids[:-1], [1]):
        with pytest.raises(RequestRefused, match="were changed on their way"):
            request_of(plan, list(tokens))


@pytest.mark.parametrize(("has_echo", "kept"), [(True, TEXT), (False, DOCUMENT)])
def test_an_echo_is_the_document_as_read(prompts: Prompts, has_echo: bool, kept: str) -> None:
    front_end: Any = SimpleNamespace(
        is_pml=is_prompt,
        plan=lambda text, **options: prompts.planner.plan(text),
        text_of=lambda plan: prompts.words.text(plan.prompt_token_ids),
    )
    request = SimpleNamespace(echo=has_echo)
    with applied(RequestOptions.of(request)):
        planned = plan_if_pml(front_end, f'<prompt schema="s">{DOCUMENT}</prompt>')
    assert kept in planned["prompt"]
