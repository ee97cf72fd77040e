"""Prompt modules beside a KV connector of the user's, such as vLLM's for offloading."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from itertools import compress
from typing import Any

from vllm.config import KVTransferConfig, VllmConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import (
    MultiConnector,
    MultiKVConnectorMetadata,
)
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.kv_cache_utils import KVCacheBlockCopy
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.request import Request

from vllm_promptcache.connector.connector import PromptModuleConnector
from vllm_promptcache.core.residency import ModuleResidency
from vllm_promptcache.steps.step import StepMetadata

# vLLM looks for the class of statistics by the connector's name alone.
KVConnectorFactory.register_connector(
    PromptModuleConnector.__name__, PromptModuleConnector.__module__, PromptModuleConnector.__name__
)


def modules_alone() -> KVTransferConfig:
    """The configuration of our connector, with an engine id of its own.

    Not the role of a consumer, whose loads may come beside a step that is still running: vLLM keeps
    back the blocks that a request frees until all steps in flight have ended, and cannot reset its
    cache while requests run. Ours are copied on the stream of the steps.
    """
    return KVTransferConfig(
        kv_connector=PromptModuleConnector.__name__,
        kv_connector_module_path=PromptModuleConnector.__module__,
        kv_role="kv_producer",
    )


def compose(foreign: KVTransferConfig) -> KVTransferConfig:
    """Returns the configuration of a connector of the user's with prompt modules beside it.

    The role of both is the user's: vLLM does for it what it does without modules.
    """
    children = [_child(modules_alone()), _child(foreign)]
    return replace(
        foreign,
        kv_connector=ComposedConnector.__name__,
        kv_connector_module_path=ComposedConnector.__module__,
        kv_connector_extra_config={"connectors": children},
    )


def _child(config: KVTransferConfig) -> dict[str, Any]:
    # vLLM gives children the engine id of the whole.
    return {name: value for name, value in asdict(config).items() if name != "engine_id"}


class ComposedConnector(MultiConnector):
    """Ours for requests that read modules, the user's for all others.

    A connector knows KV by the tokens, or the block hashes, of a plain prompt; what requests with
    modules and encodes compute must never be found under these. So it is told nothing of them but
    which blocks they write, since it may still be saving what these held before.
    """

    # vLLM's own; its `build_connector_meta` does the same with it.
    _extra_async_saves: dict[str, int]

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        ours, *self._others = self.sub_connectors
        assert isinstance(ours, PromptModuleConnector)
        self.modules: PromptModuleConnector = ours
        self._modular: set[str] = set()
        self._residency: ModuleResidency

    def bind_residency(self, residency: ModuleResidency) -> None:
        """Gives our connector the scheduler's state; called once, by the scheduler."""
        self._residency = residency
        self.modules.bind_residency(residency)

    def on_new_request(self, request: Request) -> None:
        """Takes note of whose the request is: it stays theirs until vLLM has told of its end."""
        if self._residency.get(request) is None:
            super().on_new_request(request)
        else:
            self._modular.add(request.request_id)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Asks the connector whose the request is."""
        if request.request_id in self._modular:
            return self.modules.get_num_new_matched_tokens(request, num_computed_tokens)
        return super().get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        """Tells the connector whose the request is."""
        if request.request_id in self._modular:
            self.modules.update_state_after_alloc(request, blocks, num_external_tokens)
        else:
            super().update_state_after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> MultiKVConnectorMetadata:
        """Returns the workers' part of the step, ours first."""
        step = self.modules.build_connector_meta(scheduler_output)
        plain = without(scheduler_output, self._modular, step)
        self._modular -= scheduler_output.finished_req_ids - self._residency.requests.keys()
        others = (connector.build_connector_meta(plain) for connector in self._others)
        metadata = MultiKVConnectorMetadata(metadata=(step, *others))
        if self._extra_async_saves:
            metadata.extra_async_saves, self._extra_async_saves = self._extra_async_saves, {}
        return metadata

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Begins the workers' part of a step, the others first.

        They save what is about to be written over; ours brings modules there.
        """
        assert isinstance(kv_connector_metadata, MultiKVConnectorMetadata)
        step, *others = kv_connector_metadata.metadata
        for connector, metadata in zip(self._others, others, strict=True):
            connector.handle_preemptions(metadata)
        self.modules.handle_preemptions(step)

    def _aggregate_request_finished(
        self, request: Request, per_connector_fn: Callable[..., Any]
    ) -> tuple[bool, dict[str, Any] | None]:
        if request.request_id in self._modular:
            return False, None
        return super()._aggregate_request_finished(request, per_connector_fn)


def without(
    output: SchedulerOutput, modular: Collection[str], step: StepMetadata
) -> SchedulerOutput:
    """Returns a step as it is to those who must know of plain requests only.

    Args:
        output: A step that was just scheduled; not changed.
        modular: Ids of the requests that are left out.
        step: What our connector does in it.
    """
    written = [*_blocks_written(output, modular), *step.filled_block_ids]
    if not modular and not written:
        return output
    num_tokens = {i: num for i, num in output.num_scheduled_tokens.items() if i not in modular}
    copies = [KVCacheBlockCopy(block_id, block_id) for block_id in written]
    return replace(
        output,
        scheduled_new_reqs=[r for r in output.scheduled_new_reqs if r.req_id not in modular],
        scheduled_cached_reqs=_plain_cached(output.scheduled_cached_reqs, modular),
        num_scheduled_tokens=num_tokens,
        total_num_scheduled_tokens=sum(num_tokens.values()),
        finished_req_ids=output.finished_req_ids.difference(modular),
        preempted_req_ids=(output.preempted_req_ids or set()).difference(modular),
        # What vLLM says of blocks that are written without a request of their own.
        kv_cache_block_copies=[*(output.kv_cache_block_copies or ()), *copies],
    )


def _blocks_written(output: SchedulerOutput, modular: Collection[str]) -> list[int]:
    """Blocks that were allocated to requests with modules; those they share are among them."""
    cached = output.scheduled_cached_reqs
    new = [request.block_ids for request in output.scheduled_new_reqs if request.req_id in modular]
    more = [
        block_ids
        for request_id, block_ids in zip(cached.req_ids, cached.new_block_ids, strict=True)
        if request_id in modular and block_ids is not None
    ]
    return [block_id for groups in (*new, *more) for group in groups for block_id in group]


def _plain_cached(cached: CachedRequestData, modular: Collection[str]) -> CachedRequestData:
    is_plain = [request_id not in modular for request_id in cached.req_ids]
    return CachedRequestData(
        req_ids=list(compress(cached.req_ids, is_plain)),
        resumed_req_ids=cached.resumed_req_ids.difference(modular),
        # Empty without pipeline parallelism.
        new_token_ids=list(compress(cached.new_token_ids, is_plain)),
        all_token_ids={i: ids for i, ids in cached.all_token_ids.items() if i not in modular},
        new_block_ids=list(compress(cached.new_block_ids, is_plain)),
        num_computed_tokens=list(compress(cached.num_computed_tokens, is_plain)),
        num_output_tokens=list(compress(cached.num_output_tokens, is_plain)),
    )
