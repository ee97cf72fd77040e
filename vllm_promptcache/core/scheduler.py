"""The scheduler: vLLM's own, with requests held back until their modules are resident.

Each override does its part and calls vLLM's method; no method is copied. The private methods that
are overridden here are listed in `compat/names.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from vllm_promptcache.compat.check import check_object
from vllm_promptcache.compat.engine_core import after_reload_adapter
from vllm_promptcache.compat.names import SCHEDULER
from vllm_promptcache.compat.requests import hash_adapter_names, never_hash_blocks
from vllm_promptcache.compat.scheduler import (
    admit_no_more,
    allocate_ahead,
    choose_published_blocks,
    limited_requests,
    limited_step,
)
from vllm_promptcache.config import PromptModulesConfig
from vllm_promptcache.core.admission.attention_budget import AttentionBudget
from vllm_promptcache.core.promotion.background import Background
from vllm_promptcache.core.promotion.pace import Pace
from vllm_promptcache.core.reports.integrity import check_integrity
from vllm_promptcache.core.reports.usage import module_usage
from vllm_promptcache.core.request import EncodeRequest, InternalRequest
from vllm_promptcache.core.residency import ModuleResidency
from vllm_promptcache.errors import FAILED
from vllm_promptcache.log import module_logger
from vllm_promptcache.sequence.codec import PLAN_KEY
from vllm_promptcache.store import ModuleStore

logger = module_logger(__name__)

# Tokens that a step computes for nobody beside users, at least: on a GPU they are cheap together.
MIN_NUM_TOKENS_FOR_NOBODY = 1 if current_platform.is_cpu() else 64


class PromptModuleMixin(Scheduler):
    """Maps the modules of a request onto its block table by reference (paper 3.4).

    A request whose modules are not all resident is skipped while internal encode requests run
    ahead of it. It is admitted with all its module blocks referenced, or not at all.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_object(self, SCHEDULER)
        # The engine core makes its block hasher after the scheduler.
        never_hash_blocks(PLAN_KEY)
        hash_adapter_names()
        after_reload_adapter(PromptModuleMixin.reloaded_adapter)
        config = PromptModulesConfig.of(self.vllm_config)
        manager = self.kv_cache_manager
        scheduling = self.scheduler_config
        is_chunked = scheduling.enable_chunked_prefill
        self.residency = ModuleResidency(
            manager.block_pool,
            self.block_size,
            max_rows=None if is_chunked else scheduling.max_num_seqs,
            max_pinned_share=config.max_pinned_share,
            evicts_by_value=config.eviction == "value",
            num_host_blocks=int(config.host_memory * 2**30 / self.block_bytes),
            has_disk=config.dir is not None,
            num_workers=self.vllm_config.parallel_config.world_size,
            prefetches=config.prefetch,
            promote_after=config.promote_after,
            max_promoted_share=config.max_promoted_share,
            verify=config.verify,
            encode_after=config.encode_after if config.cold == "plain" else 1,
        )
        self._attention = AttentionBudget(
            scheduling.max_num_seqs, self.residency.get, is_chunked=is_chunked
        )
        pace = Pace(
            min_num_tokens=MIN_NUM_TOKENS_FOR_NOBODY,
            max_num_tokens=self.max_num_scheduled_tokens,
        )
        self._background = Background(self.residency, pace, is_chunked=is_chunked)
        choose_published_blocks(manager, self.residency.may_publish)
        allocate_ahead(manager, self.residency.num_ahead)
        self.connector.bind_residency(self.residency)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block in all layers of a worker."""
        config = self.kv_cache_config
        return sum(tensor.size for tensor in config.kv_cache_tensors) // config.num_blocks

    @property
    def module_store(self) -> ModuleStore:
        """The resident modules."""
        return self.residency.store

    def check_integrity(self) -> None:
        """Walks store, pins and block pool.

        Raises:
            AssertionError: An invariant is violated.
        """
        check_integrity(self, self.residency)

    def add_request(self, request: Request) -> None:
        """Adds a request; a bad plan ends it with an error at the next step."""
        if request.request_id not in self.requests:
            self._read_plan(request)
        super().add_request(request)

    def _read_plan(self, request: Request) -> None:
        try:
            self.residency.adapters.name(request)
            self.residency.add(request)
        except Exception as error:
            # An exception here would end the engine; whatever is in a plan, only its request ends.
            logger.exception("Request %s is refused", request.request_id)
            self.residency.rejected[request.request_id] = FAILED + type(error).__name__

    def reloaded_adapter(self, lora_int_id: int) -> None:
        """Takes note that a client had a LoRA adapter loaded again, or removed."""
        self.residency.adapters.reloaded(lora_int_id)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Starts the encodes and probes that waiting requests need, then schedules as vLLM does.

        What the step leaves goes to encodes that nobody waits for.
        """
        self.residency.follow_adapters(self.requests.values())
        # An encode that ends leaves the encodes of its contexts, which nobody may wait for then.
        while orphans := self.residency.take_orphans():
            self.finish_requests(orphans, RequestStatus.FINISHED_ABORTED)
        # Workers are told of a request's end in a step more, so the last answer has left then.
        self._add_internal(self._background.start_step(self.running, self.waiting))
        self._prepare()
        if self._make_way():
            self._prepare()
        self._raise_outranked()
        limited = limited_step(self, self._attention.start_step(self.running))
        with limited, limited_requests(self, self._background.limit):
            output = super().schedule(throttle_prefills)
        self._background.scheduled(output)
        return output

    def _prepare(self) -> None:
        # Where nobody waits it makes no difference who runs.
        users = (request for request in self.running if not self._is_internal(request))
        num_users = sum(1 for _ in users) if self.waiting else 0
        # Beside some connectors of users, blocks come back when the steps in flight have ended.
        num_users += len(self.deferred_frees)
        num_reserved = self._inflight_prefill_reserved_blocks()
        self._add_internal(self.residency.prepare(self.waiting, num_users, num_reserved))

    def _make_way(self) -> bool:
        """Ends what is encoded for nobody if it is in the way of users; returns whether it was."""
        is_full = len(self.running) >= self.max_num_active_reqs or self._attention.is_full
        if (found := self._background.in_the_way(is_full=is_full)) is not None:
            self._end_for_nobody(found)
        return found is not None

    def _end_for_nobody(self, request_id: str) -> None:
        self.residency.for_nobody.interrupt()
        self.finish_requests([request_id], RequestStatus.FINISHED_ABORTED)

    def _is_internal(self, request: Request) -> bool:
        return isinstance(self.residency.get(request), InternalRequest)

    def _raise_outranked(self) -> None:
        """Gives encodes the rank of a better request that has come to wait for them."""
        for request, rank in self.residency.encodes.take_outranked():
            is_queued = request.status != RequestStatus.RUNNING
            if self.policy == SchedulingPolicy.PRIORITY and is_queued:
                self.waiting.remove_request(request)
            request.priority, request.arrival_time = rank
            if self.policy == SchedulingPolicy.PRIORITY and is_queued:
                self.waiting.add_request(request)

    def _add_internal(self, requests: Sequence[Request]) -> None:
        # Each is put at the head of the queue, so the first one goes last.
        for request in reversed(requests):
            super().add_request(request)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """As vLLM, without the outputs of our own requests, with those of rejected ones."""
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        self._background.ended(scheduler_output)
        if ended := self.residency.take_ended_internal():
            for client in outputs.values():
                client.outputs = [o for o in client.outputs if o.request_id not in ended]
        if self.residency.rejected:
            self._end_rejected(outputs)
        return outputs

    def _end_rejected(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        reasons = self.residency.take_rejected()
        by_client: dict[int, list[EngineCoreOutput]] = defaultdict(list)
        for request in self.finish_requests(list(reasons), RequestStatus.FINISHED_ERROR):
            logger.warning(
                "Request %s is not served: %s", request.request_id, reasons[request.request_id]
            )
            by_client[request.client_index].append(
                EngineCoreOutput(
                    request_id=request.request_id,
                    new_token_ids=[],
                    finish_reason=FinishReason.ERROR,
                    stop_reason=reasons[request.request_id],
                )
            )
        for client_index, rejected in by_client.items():
            outputs.setdefault(client_index, EngineCoreOutputs()).outputs.extend(rejected)

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """As vLLM; modules are forgotten with the rest, pinned ones until they are used again."""
        if (encode := self.residency.encodes.for_nobody) is not None and not encode.waiters:
            # vLLM resets nothing while a request runs.
            self._end_for_nobody(encode.request_id)
        self.residency.release()
        self.residency.tiers.forget()
        return super().reset_prefix_cache(reset_running_requests, reset_connector)

    def _enqueue_waiting_request(self, request: Request) -> None:
        if self._is_internal(request):
            self.waiting.prepend_request(request)
        else:
            super()._enqueue_waiting_request(request)

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        is_over = self.residency.is_over(request)
        # Who has blocks goes first, as in vLLM: others may wait for them.
        is_held_back = self._background.holds_back(request) or self.residency.holds_back(request)
        if not self._holds_kv_blocks(request) and is_held_back:
            if is_over:
                admit_no_more(self)
            return False
        if not self._attention.fits(request, self.running):
            admit_no_more(self)
            return False
        return super()._handle_blocked_waiting_request(request)

    def _get_local_prefix_cache_hit(
        self, request: Request, *limit: int | None
    ) -> tuple[KVCacheBlocks, int, int, bool]:
        modular = self.residency.get(request)
        if modular is None:
            return super()._get_local_prefix_cache_hit(request, *limit)
        # vLLM 0.33 adds a limit, for auxiliary outputs only; these are refused at the start.
        # If a module is missing the connector, asked next, answers "later".
        blocks = self.residency.map(modular) or []
        hit = self.kv_cache_manager.create_kv_cache_blocks((blocks,))
        return hit, len(blocks) * self.block_size, 0, False

    def _preempt_request(
        self, request: Request, timestamp: float, drop_stale_output: bool = False
    ) -> None:
        self.residency.preempted(request)
        # The token of an encode would end it, and its blocks are gone: it runs again instead.
        is_encode = isinstance(self.residency.get(request), EncodeRequest)
        super()._preempt_request(request, timestamp, drop_stale_output or is_encode)

    def _free_request(
        self, request: Request, delay_free_blocks: bool = False
    ) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        blocks = self.kv_cache_manager.get_blocks(request.request_id).blocks[0]
        modular = self.residency.get(request)
        self.residency.finish(request, blocks)
        kv_params, ec_params = super()._free_request(request, delay_free_blocks)
        usage = None if modular is None else module_usage(modular)
        if usage is not None:
            kv_params = {**(kv_params or {}), "prompt_modules": usage}
        return kv_params, ec_params


class PromptModuleScheduler(PromptModuleMixin, Scheduler):
    """vLLM's synchronous scheduler with prompt modules."""


class PromptModuleAsyncScheduler(PromptModuleMixin, AsyncScheduler):
    """vLLM's asynchronous scheduler with prompt modules."""
