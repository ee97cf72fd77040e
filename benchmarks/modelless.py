"""vLLM's scheduler, with prompt modules on or off, and no model: all tokens are the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
)
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from vllm_promptcache.config import CONFIG_KEY
from vllm_promptcache.entrypoints.front_end import FrontEnd
from vllm_promptcache.plugin import register
from vllm_promptcache.sequence.codec import PLAN_KEY

TOKEN_ID = 5


@dataclass(slots=True)
class ModellessEngine:
    """Front end and scheduler of an engine; its steps compute nothing.

    Attributes:
        front_end: Plans prompts; None where prompt modules are off.
        scheduler: vLLM's, with prompt modules if they are on.
        max_model_len: Tokens of a sequence at most.
        hash_blocks: Hashes the blocks of plain requests, as vLLM does.
        num_steps: Steps so far.
    """

    front_end: FrontEnd | None
    scheduler: Any
    max_model_len: int
    hash_blocks: Callable[[Request], list[Any]]
    num_steps: int = 0
    _num_requests: int = 0

    @classmethod
    def start(
        cls,
        model: Path,
        tokenizer: Any,
        num_blocks: int,
        *,
        modules: dict[str, Any] | None,
        block_size: int = 32,
        max_model_len: int = 768,
        **engine_args: Any,
    ) -> ModellessEngine:
        """Makes an engine for the shape of a model.

        Args:
            model: Its folder; weights are not read.
            tokenizer: Of the front end.
            num_blocks: Blocks of the KV cache.
            modules: Options of prompt modules, None to leave them off.
            block_size: Tokens a block.
            max_model_len: Tokens of a sequence at most.
            engine_args: Other options of vLLM.
        """
        register()
        config = EngineArgs(
            model=str(model),
            dtype="float32",
            enforce_eager=True,
            max_model_len=max_model_len,
            block_size=block_size,
            additional_config={} if modules is None else {CONFIG_KEY: modules},
            **engine_args,
        ).create_engine_config()
        config.cache_config.num_gpu_blocks = num_blocks
        digest = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
        init_none_hash(digest)
        scheduler = config.scheduler_config.get_scheduler_cls()(
            vllm_config=config,
            kv_cache_config=_kv_cache(num_blocks, block_size),
            structured_output_manager=StructuredOutputManager(config),
            block_size=block_size,
            hash_block_size=block_size,
        )
        front_end = None if modules is None else FrontEnd.create(config, tokenizer)
        hasher = get_request_block_hasher(block_size, digest)
        return cls(front_end, scheduler, max_model_len, hasher)

    def add(self, pml: str, max_tokens: int, priority: int = 0) -> Request:
        """Adds a prompt with modules.

        Raises:
            PlanError: The front end refuses it.
        """
        return self.add_planned(self.plan(pml), max_tokens, priority)

    def plan(self, pml: str) -> Any:
        """Plans a prompt with modules.

        Raises:
            PlanError: The front end refuses it.
        """
        assert self.front_end is not None, "prompt modules are off"
        return self.front_end.plan(pml)

    def add_planned(self, plan: Any, max_tokens: int, priority: int = 0) -> Request:
        """Adds a prompt that was planned, as often as one likes."""
        return self._add(plan.prompt_token_ids, max_tokens, priority, {PLAN_KEY: plan.packed})

    def add_plain(self, token_ids: list[int], max_tokens: int, priority: int = 0) -> Request:
        """Adds a prompt without modules."""
        return self._add(token_ids, max_tokens, priority, None)

    def _add(
        self, token_ids: list[int], max_tokens: int, priority: int, extra_args: Any
    ) -> Request:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=min(max_tokens, self.max_model_len - len(token_ids)),
            ignore_eos=True,
            extra_args=extra_args,
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
        scheduled = self.schedule()
        outputs = self.update(scheduled, self.sample(scheduled))
        ended = [o for client in outputs.values() for o in client.outputs if o.finish_reason]
        return ended, scheduled.total_num_scheduled_tokens

    def schedule(self) -> SchedulerOutput:
        """The first part of a step."""
        self.num_steps += 1
        return self.scheduler.schedule()

    def sample(self, scheduled: SchedulerOutput) -> ModelRunnerOutput:
        """What a model would answer to a step."""
        ids = list(scheduled.num_scheduled_tokens)
        requests = [self.scheduler.requests[request_id] for request_id in ids]
        is_done = [r.num_computed_tokens >= r.num_tokens for r in requests]
        return ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
            sampled_token_ids=[[TOKEN_ID] if done else [] for done in is_done],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )

    def update(
        self, scheduled: SchedulerOutput, answer: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """The last part of a step; returns the outputs by client."""
        return self.scheduler.update_from_output(scheduled, answer)


def _kv_cache(num_blocks: int, block_size: int) -> KVCacheConfig:
    spec = FullAttentionSpec(
        block_size=block_size, num_kv_heads=1, head_size=64, dtype=torch.float32
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
