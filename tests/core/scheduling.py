"""vLLM's scheduler with prompt modules, and no model behind it: all tokens are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
)
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from tests.families import build_tokenizer
from vllm_promptcache.config import CONFIG_KEY
from vllm_promptcache.core.scheduler import PromptModuleMixin
from vllm_promptcache.entrypoints.front_end import FrontEnd
from vllm_promptcache.plugin import register
from vllm_promptcache.sequence.codec import PLAN_KEY

TOKEN_ID = 5
BLOCK_SIZE = 32
MAX_MODEL_LEN = 768


@dataclass(slots=True)
class ModellessEngine:
    """Front end and scheduler of an engine; its steps compute nothing.

    Attributes:
        front_end: Plans prompts.
        scheduler: vLLM's, with prompt modules.
        hash_blocks: Hashes the blocks of plain requests, as vLLM does.
        num_steps: Steps so far.
    """

    front_end: FrontEnd
    scheduler: PromptModuleMixin
    hash_blocks: Callable[[Request], list[Any]]
    num_steps: int = 0
    _num_requests: int = 0

    @classmethod
    def start(
        cls, model: Path, num_blocks: int, *, modules: dict[str, Any], **engine_args: Any
    ) -> ModellessEngine:
        """Makes an engine for the tokenizer and the shape of a model."""
        register()
        config = EngineArgs(
            model=str(model),
            dtype="float32",
            enforce_eager=True,
            max_model_len=MAX_MODEL_LEN,
            block_size=BLOCK_SIZE,
            additional_config={CONFIG_KEY: modules},
            **engine_args,
        ).create_engine_config()
        config.cache_config.num_gpu_blocks = num_blocks
        digest = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
        init_none_hash(digest)
        scheduler = config.scheduler_config.get_scheduler_cls()(
            vllm_config=config,
            kv_cache_config=_kv_cache(num_blocks),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_SIZE,
            hash_block_size=BLOCK_SIZE,
        )
        hasher = get_request_block_hasher(BLOCK_SIZE, digest)
        return cls(FrontEnd.create(config, build_tokenizer()), scheduler, hasher)

    def add(self, pml: str, max_tokens: int, priority: int = 0) -> Request:
        """Adds a prompt with modules.

        Raises:
            PlanError: The front end refuses it.
        """
        plan = self.front_end.plan(pml)
        room = MAX_MODEL_LEN - plan.next_position
        extra_args = {PLAN_KEY: plan.packed}
        return self._add(plan.prompt_token_ids, min(max_tokens, room), priority, extra_args)

    def add_plain(self, token_ids: list[int], max_tokens: int, priority: int = 0) -> Request:
        """Adds a prompt without modules."""
        return self._add(token_ids, max_tokens, priority, None)

    def _add(
        self, token_ids: list[int], max_tokens: int, priority: int, extra_args: Any
    ) -> Request:
        params = SamplingParams(
            temperature=0.0, max_tokens=max_tokens, ignore_eos=True, extra_args=extra_args
        )
        self._num_requests += 1
        request = Request(
            request_id=f"user-{self._num_requests}",
            prompt_token_ids=token_ids,
            sampling_params=params,
            pooling_params=None,
            arrival_time=float(self._num_requests),
            priority=priority,
            block_hasher=None if extra_args else self.hash_blocks,
        )
        self.scheduler.add_request(request)
        return request

    def abort(self, request_id: str) -> None:
        """Aborts a request."""
        self.scheduler.finish_requests([request_id], RequestStatus.FINISHED_ABORTED)

    def step(self) -> tuple[list[EngineCoreOutput], int]:
        """Runs a step; returns the outputs that end requests, and how many tokens it computed."""
        self.num_steps += 1
        scheduled = self.scheduler.schedule()
        ids = list(scheduled.num_scheduled_tokens)
        requests = [self.scheduler.requests[request_id] for request_id in ids]
        is_done = [r.num_computed_tokens >= r.num_tokens for r in requests]
        outputs = self.scheduler.update_from_output(
            scheduled,
            ModelRunnerOutput(
                req_ids=ids,
                req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
                sampled_token_ids=[[TOKEN_ID] if done else [] for done in is_done],
                logprobs=None,
                prompt_logprobs_dict={},
                pooler_output=[],
            ),
        )
        ended = [o for client in outputs.values() for o in client.outputs if o.finish_reason]
        return ended, scheduled.total_num_scheduled_tokens


def _kv_cache(num_blocks: int) -> KVCacheConfig:
    spec = FullAttentionSpec(
        block_size=BLOCK_SIZE, num_kv_heads=1, head_size=64, dtype=torch.float32
    )
    size = spec.page_size_bytes
    tensor = KVCacheTensor(
        size=size * num_blocks, layers=["layer"], layer_stride=0, block_stride=size
    )
    return KVCacheConfig(
        num_blocks=num_blocks,
        kv_cache_tensors=[tensor],
        kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
    )


@dataclass(slots=True)
class Crowd:
    """Clients that send a new request as soon as they have got an answer.

    Attributes:
        engine: What they send them to.
        send: Adds a request with the numbers it is given; returns it.
        num_requests: Requests in all.
        num_clients: Requests at a time.
        num_aborts: How many of 100 steps abort a request.
        reasons: Why requests were not served.
        num_served: Requests that were answered.
        num_aborted: Requests that were aborted.
    """

    engine: ModellessEngine
    send: Callable[[Random], Request]
    num_requests: int
    num_clients: int = 32
    num_aborts: int = 0
    reasons: list[str] = field(default_factory=list)
    num_served: int = 0
    num_aborted: int = 0

    def run(self, max_idle_steps: int = 50, steps_between_checks: int = 10) -> None:
        """Lets all requests end.

        Raises:
            AssertionError: Nothing is computed for many steps, or the engine's books are wrong.
        """
        rng, live = Random(0), set[str]()
        coming = iter(range(self.num_requests))
        self._fill(rng, live, coming)
        num_idle = 0
        while live:
            ended, num_tokens = self.engine.step()
            num_idle = 0 if num_tokens else num_idle + 1
            assert num_idle < max_idle_steps, f"stuck: {sorted(live)}"
            for output in ended:
                live.discard(output.request_id)
                if str(output.finish_reason) == "length":
                    self.num_served += 1
                else:
                    self.reasons.append(str(output.stop_reason))
            if live and rng.randrange(100) < self.num_aborts:
                self._abort(rng.choice(sorted(live)), live)
            self._fill(rng, live, coming)
            if self.engine.num_steps % steps_between_checks == 0:
                self.engine.scheduler.check_integrity()

    def _fill(self, rng: Random, live: set[str], coming: Iterator[int]) -> None:
        while len(live) < self.num_clients and next(coming, None) is not None:
            live.add(self.send(rng).request_id)

    def _abort(self, request_id: str, live: set[str]) -> None:
        live.discard(request_id)
        self.engine.abort(request_id)
        self.num_aborted += 1
