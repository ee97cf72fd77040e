"""The KV connector: how scheduler and workers agree on the copies of a step.

Both roles are thin: the scheduler's answers come from `ModuleResidency`, the worker's work is done
by `ModuleWorker`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request

from vllm_promptcache.compat.check import check_object
from vllm_promptcache.compat.engine_core import add_utility
from vllm_promptcache.compat.names import RUNNER_V1, RUNNER_V2
from vllm_promptcache.compat.runner import (
    after_initialize_kv_cache,
    after_prepare_inputs,
    before_execute_model,
    never_replay_full,
    split_attention_rows,
)
from vllm_promptcache.compat.worker import (
    after_reload_weights,
    around_load_adapter,
    leave_layers_alone,
)
from vllm_promptcache.core.reports.introspection import (
    PIN_UTILITY,
    RESIDENTS_UTILITY,
    STATUS_UTILITY,
    STORE_UTILITY,
    prompt_module_pin,
    prompt_module_residents,
    prompt_module_status,
    prompt_module_store,
)
from vllm_promptcache.core.reports.metrics import ModuleStats
from vllm_promptcache.steps.adapter_files import fingerprint_files
from vllm_promptcache.steps.step import StepMetadata, WorkerReport, find_step
from vllm_promptcache.worker.module_worker import ModuleWorker
from vllm_promptcache.worker.runner_inputs import runner_inputs

if TYPE_CHECKING:
    from vllm.forward_context import ForwardContext

    from vllm_promptcache.core.residency import ModuleResidency


class PromptModuleConnector(KVConnectorBase_V1):
    """Presents the tails of modules to vLLM as KV that a connector loads.

    A module's full blocks are mapped by reference; the tokens behind them, fewer than a block
    each, are copied on the device into the request's own blocks.
    """

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        # One of them, by role; set before any call that needs it.
        self._residency: ModuleResidency
        self._worker: ModuleWorker
        self._kv_caches: dict[str, torch.Tensor]
        if role == KVConnectorRole.WORKER:
            leave_layers_alone(lambda group: type(group) is PromptModuleConnector)
            after_initialize_kv_cache(vllm_config, _bind_runner)
            before_execute_model(vllm_config, _begin_step)
            after_prepare_inputs(vllm_config, _place_tokens)
            after_reload_weights(_forget_model)
            around_load_adapter(fingerprint_files, _loaded_adapter)
        else:
            add_utility(STATUS_UTILITY, prompt_module_status)
            add_utility(STORE_UTILITY, prompt_module_store)
            add_utility(PIN_UTILITY, prompt_module_pin)
            add_utility(RESIDENTS_UTILITY, prompt_module_residents)

    # Scheduler side

    @property
    def requires_kv_delivery(self) -> bool:
        """No: when a request ends nobody is handed its KV.

        Where it is so, vLLM drops what a preempted request has generated and not yet delivered.
        """
        return False

    def bind_residency(self, residency: ModuleResidency) -> None:
        """Gives the connector the scheduler's state; called once, by the scheduler."""
        self._residency = residency

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Returns how many tail tokens are copied, or None while a module is missing."""
        modular = self._residency.get(request)
        if modular is None:
            return 0, False
        return (None if modular.mapped is None else modular.num_copied_tokens), False

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        """Plans the copies of an admitted request."""
        self._residency.admit(request, blocks.get_block_ids()[0])

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> StepMetadata:
        """Returns the workers' part of the step."""
        manager = self._kv_cache_manager
        return self._residency.end_step(
            scheduler_output.num_scheduled_tokens, lambda i: manager.get_block_ids(i)[0]
        )

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """Takes note of what the worker has read and loaded, and of what probes have measured."""
        if isinstance(report := connector_output.kv_connector_worker_meta, WorkerReport):
            self._residency.tiers.fetched(report)
            self._residency.probes.answer(report.attention)
            self._residency.adapters.loaded(report.adapters)

    def get_kv_connector_stats(self) -> ModuleStats | None:
        """Returns what modules did in the last step."""
        return self._residency.metrics.take() if self.role == KVConnectorRole.SCHEDULER else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> ModuleStats:
        """Reads statistics that have travelled from the engine."""
        return ModuleStats(data or {})

    @classmethod
    def build_prom_metrics(cls, *args: Any) -> Any:
        """Makes the metrics that those statistics go into."""
        from vllm_promptcache.core.reports.prometheus import ModulePromMetrics

        return ModulePromMetrics(*args)

    # Worker side

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Takes note of the KV caches; the model follows."""
        self._kv_caches = kv_caches

    def bind_runner(self, runner: Any) -> None:
        """Makes copies and files ready, once a model runner has its KV caches."""
        config = runner.vllm_config
        check_object(runner, RUNNER_V2 if config.use_v2_model_runner else RUNNER_V1)
        inputs = runner_inputs(runner)
        self._worker = ModuleWorker.create(config, self._kv_caches, runner.get_model(), inputs)
        split_attention_rows(runner, self._worker.split_rows)
        placement = self._worker.placement
        never_replay_full(runner, lambda: placement.is_regular)

    def begin_step(self, scheduler_output: SchedulerOutput) -> None:
        """Begins a step of the runner's, before anything of it is prepared."""
        if (step := find_step(scheduler_output.kv_connector_metadata)) is not None:
            self._worker.placement.begin(step)

    def place_tokens(self, prepared: Any) -> None:
        """Gives the tokens of a step their positions and slots, and what they see."""
        self._worker.place(prepared)

    def loaded_adapter(self, lora_int_id: int, files: bytes) -> None:
        """Takes note that a LoRA adapter was read from its files."""
        self._worker.loaded_adapter(lora_int_id, files)

    def forget_model(self) -> None:
        """Takes note that the model has other weights now."""
        self._worker.forget_model()

    def build_connector_worker_meta(self) -> WorkerReport | None:
        """Tells the scheduler what was read from disk, and what probes have measured."""
        return self._worker.report()

    def shutdown(self) -> None:
        """Waits until all that is to be kept on disk is there."""
        if self.role == KVConnectorRole.WORKER:
            self._worker.close()

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Moves modules to and from host memory.

        vLLM calls this first in every step, while blocks that will be written still hold what they
        did; `start_load_kv` comes after the forward pass where no request loads anything.
        """
        if isinstance(kv_connector_metadata, StepMetadata):
            self._worker.begin(kv_connector_metadata)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Runs the copies that this step's forward pass reads."""
        self._worker.before_forward(self._get_connector_metadata())

    def wait_for_save(self) -> None:
        """Runs the copies of modules whose encode this step has finished."""
        self._worker.after_forward(self._get_connector_metadata())

    def has_connector_metadata(self) -> bool:
        """Tells vLLM's attention layers that no layer has anything to wait for or to save.

        Copies run before and after the forward pass. It is asked beside another connector only.
        """
        return False

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for."""

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to save."""


def _forget_model(worker: Any) -> None:
    if (connector := _connector()) is not None:
        connector.forget_model()


def _loaded_adapter(lora_int_id: int, files: bytes) -> None:
    if (connector := _connector()) is not None:
        connector.loaded_adapter(lora_int_id, files)


def _bind_runner(runner: Any) -> None:
    if (connector := _connector()) is not None:
        connector.bind_runner(runner)


def _begin_step(scheduler_output: SchedulerOutput) -> None:
    if (connector := _connector()) is not None:
        connector.begin_step(scheduler_output)


def _place_tokens(prepared: Any) -> None:
    if (connector := _connector()) is not None:
        connector.place_tokens(prepared)


def _connector() -> PromptModuleConnector | None:
    """Ours in this worker, None if its engine has prompt modules off."""
    if not has_kv_transfer_group():
        return None
    group = get_kv_transfer_group()
    connector = group.sub_connectors[0] if isinstance(group, MultiConnector) else group
    return connector if isinstance(connector, PromptModuleConnector) else None
