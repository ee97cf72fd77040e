"""The shadow check: how far reuse moves the first token of prompts that are served.

For a share of PML prompts the server asks the engine twice more, once the client has its answer:
for a plain prefill of the same prompt, and for the prompt as it was planned, whose modules are warm
by then. What differs between the two is what reuse does, not sampling.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from vllm.inputs import tokens_input
from vllm.sampling_params import SamplingParams

from vllm_promptcache.entrypoints.engine_request import PLAN_FIELD, plan_of_client
from vllm_promptcache.entrypoints.shadow_metrics import shadow_metrics
from vllm_promptcache.log import module_logger
from vllm_promptcache.plan import PromptPlan
from vllm_promptcache.quality.first_token import NUM_TOKENS, FirstToken

if TYPE_CHECKING:
    from vllm_promptcache.entrypoints.front_end import FrontEnd

logger = module_logger(__name__)

# Prompts that wait for their comparison; each holds its tokens in memory.
MAX_NUM_WAITING = 16
# Where the engine schedules by priority, lower comes first: every client before a comparison.
_LAST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ServedPrompt:
    """A prompt that a client has an answer to.

    Attributes:
        plan: How it was laid out.
        cache_salt: Its tenant's salt, which its comparison keeps to.
        lora_request: vLLM's request for an adapter.
        data_parallel_rank: The rank that the client chose.
    """

    plan: PromptPlan
    cache_salt: str | None
    lora_request: Any
    data_parallel_rank: int | None


class ShadowCheck:
    """Compares a share of the prompts of one API server, one after the other.

    Args:
        front_end: Plans baselines.
        generate: The engine client's method, as it was before `watch` wraps it.
        share: Share of PML prompts that are compared, from 0 to 1.
    """

    def __init__(
        self, front_end: FrontEnd, generate: Callable[..., AsyncGenerator[Any]], share: float
    ) -> None:
        self._front_end = front_end
        self._generate = generate
        self._share = share
        self._random = Random(0)
        self._waiting: asyncio.Queue[ServedPrompt] = asyncio.Queue(MAX_NUM_WAITING)
        self._metrics = shadow_metrics()

    def watch(
        self, original: Callable[..., AsyncGenerator[Any]], prompt: Any, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[Any]:
        """Wraps the engine client's `generate`: takes note of some prompts once they are served."""
        outputs = original(prompt, *args, **kwargs)
        plan = plan_of_client(prompt)
        # What reuses nothing is a plain prefill itself.
        if plan is None or not plan.num_cached_tokens or self._random.random() >= self._share:
            return outputs
        rank, adapter = kwargs.get("data_parallel_rank"), kwargs.get("lora_request")
        return self._served(outputs, ServedPrompt(plan, prompt.get("cache_salt"), adapter, rank))

    async def _served(
        self, outputs: AsyncGenerator[Any], served: ServedPrompt
    ) -> AsyncGenerator[Any]:
        async with aclosing(outputs):
            async for output in outputs:
                yield output
        try:
            self._waiting.put_nowait(served)
        except asyncio.QueueFull:
            self._metrics.dropped.inc()

    async def run(self) -> None:
        """Compares what has been served, until it is cancelled."""
        while True:
            served = await self._waiting.get()
            try:
                await self._compare(served)
            # Whatever goes wrong here must not keep others from being compared.
            except Exception:
                self._metrics.failed.inc()
                logger.debug("A prompt was not compared", exc_info=True)

    async def _compare(self, served: ServedPrompt) -> None:
        plan = await asyncio.to_thread(self._front_end.baseline, served.plan)
        token, logprobs = await self._first_token(
            plan, served, logprobs=NUM_TOKENS, skip_reading_prefix_cache=True
        )
        plain = FirstToken.of(logprobs)
        other, logprobs = await self._first_token(
            served.plan, served, logprob_token_ids=list(plain.token_ids)
        )
        self._metrics.record(plan.schema, plain.divergence(logprobs), is_same=token == other)

    async def _first_token(
        self, plan: PromptPlan, served: ServedPrompt, **options: Any
    ) -> tuple[int, dict[int, float]]:
        """Returns the likeliest first token, and log-probabilities of those that `options` name."""
        tokens = tokens_input(plan.prompt_token_ids, cache_salt=served.cache_salt)
        outputs = self._generate(
            {**tokens, PLAN_FIELD: plan},
            SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, **options),
            f"shadow-{uuid4()}",
            lora_request=served.lora_request,
            priority=_LAST,
            data_parallel_rank=served.data_parallel_rank,
        )
        async for output in outputs:
            (answer,) = output.outputs
        (step,) = answer.logprobs
        return answer.token_ids[0], {token: found.logprob for token, found in step.items()}
