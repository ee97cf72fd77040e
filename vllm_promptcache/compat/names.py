"""What is not public API of vLLM and relied on nevertheless.

A file may touch a private name of vLLM (one that begins with an underscore) only if it is listed
here with that name. What the names of some files are for is said above them; what goes wrong
without a hook, in its docstring.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Reliance:
    """Names that some files rely on.

    Attributes:
        files: These files, below the package's folder.
        names: By module or class, as `module:Class`, names in it; of a class also attributes of its
            instances. They are looked for when an engine is configured.
        owner: A kind of object, of which more is to be looked for when it is there.
        attributes: Its attributes, and theirs behind a dot.
        classes: Those that it may be of; where only sources are there, they are looked at.
    """

    files: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    owner: str = ""
    attributes: str = ""
    classes: tuple[str, ...] = ()

    def wanted(self) -> Iterator[tuple[str, str]]:
        """All of it, as an owner and a name of it, attributes of objects by their classes."""
        objects = ((cls, self.attributes) for cls in self.classes)
        for owner, names in (*self.names.items(), *objects):
            yield from ((owner, name) for name in names.split())


# Options on the command line; our renderer and routes in place of, or beside, vLLM's; which of
# several API servers this is.
_START = Reliance(
    ("plugin.py", "engine.py", "entrypoints/schema_routes.py"),
    {
        "vllm.engine.arg_utils": "get_kwargs",
        "vllm.engine.arg_utils:EngineArgs": "add_cli_args create_engine_config from_cli_args",
        "vllm.renderers.registry:RENDERER_REGISTRY": "load_renderer",
        "vllm.plugins": "load_endpoint_plugins",
        "vllm.config:ParallelConfig": "_api_process_count _api_process_rank",
    },
)
# A prompt on its way to the engine: it is planned before it is tokenized, and its plan is kept.
_PROMPTS = Reliance(
    (
        "entrypoints/renderer.py",
        "entrypoints/chat.py",
        "entrypoints/request_options.py",
        "entrypoints/engine_request.py",
    ),
    {
        "vllm.renderers.registry:RENDERER_REGISTRY": "load_renderer_cls",
        "vllm.renderers.base:BaseRenderer": (
            "_process_tokens _process_tokens_async _tokenize_singleton_prompt "
            "_tokenize_singleton_prompt_async render_messages render_messages_async"
        ),
        "vllm.renderers:ChatParams": (
            "chat_template chat_template_content_format chat_template_kwargs"
        ),
        "vllm.renderers.online_renderer:OnlineRenderer": "preprocess_chat preprocess_cmpl",
        "vllm.entrypoints.serve.tokenize.protocol": "TokenizeChatRequest TokenizeCompletionRequest",
        "vllm.v1.engine.input_processor:InputProcessor": "model_config process_inputs vllm_config",
    },
)
# Marks of Anthropic's API on their way into a chat.
_MARKS = Reliance(
    ("entrypoints/anthropic_marks.py",),
    {
        "vllm.entrypoints.anthropic.protocol": (
            "AnthropicContentBlock AnthropicMessage AnthropicMessagesRequest"
        ),
        "vllm.entrypoints.anthropic.serving:AnthropicServingMessages": "to_chat_completion_request",
    },
)
# An answer on its way to the client: reasons, what was reused.
_ANSWERS = Reliance(
    ("entrypoints/ended.py", "entrypoints/detail.py"),
    {
        "vllm.v1.engine.output_processor:OutputProcessor": "process_outputs request_states",
        "vllm.v1.engine.output_processor:RequestState": "queue",
        "vllm.v1.engine.output_processor:RequestOutputCollector": "put",
        "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion": (
            "completion_stream_generator request_output_to_completion_response"
        ),
        "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat": (
            "chat_completion_full_generator chat_completion_stream_generator"
        ),
    },
)
# Questions of a front end to its engines, and to which of them a request goes.
_CLIENTS = Reliance(
    (
        "compat/engine_core.py",
        "core/reports/introspection.py",
        "entrypoints/affinity.py",
        "entrypoints/engine_modules.py",
        "llm.py",
    ),
    {
        "vllm.v1.engine.async_llm:AsyncLLM": "engine_core renderer vllm_config",
        "vllm.v1.engine.llm_engine:LLMEngine": "engine_core",
        "vllm.entrypoints.llm:LLM": "llm_engine renderer",
        "vllm.v1.engine.core:EngineCore": "add_lora remove_lora scheduler",
        "vllm.v1.engine:EngineCoreRequest": "data_parallel_rank",
        "vllm.v1.engine.core_client:InprocClient": "engine_core",
        "vllm.v1.engine.core_client:SyncMPClient": "call_utility",
        "vllm.v1.engine.core_client:AsyncMPClient": "call_utility_async",
        "vllm.v1.engine.core_client:DPLBAsyncMPClient": (
            "call_utility_all_async client_count core_engines engine_inflight "
            "get_core_engine_for_request lb_engines"
        ),
    },
)
# Requests: they wait for modules, their tokens get another order and their blocks hashes of ours.
_REQUESTS = Reliance(
    ("compat/requests.py", "core/adapters.py", "core/request.py", "core/reports/usage.py"),
    {
        "vllm.v1.request:Request": (
            "__init__ _all_token_ids _block_hasher all_token_ids arrival_time block_hashes "
            "cache_salt client_index is_finished lora_request max_tokens num_computed_tokens "
            "num_preemptions num_prompt_tokens num_tokens prefill_stats priority prompt_token_ids "
            "request_id sampling_params skip_reading_prefix_cache status trace_headers "
            "update_block_hashes"
        ),
        "vllm.v1.request:RequestStatus": "FINISHED_ABORTED FINISHED_ERROR RUNNING",
        "vllm.lora.request:LoRARequest": "load_inplace lora_int_id lora_name lora_path",
        "vllm.v1.metrics.stats:PrefillStats": (
            "num_cached_tokens num_external_cached_tokens num_prompt_tokens set"
        ),
        "vllm.v1.engine.core": "get_request_block_hasher",
        "vllm.v1.core.kv_cache_utils": "_gen_lora_extra_hash_keys",
    },
)
# Blocks: those of modules are found by hashes of ours, and given away in an order of ours.
_BLOCKS = Reliance(
    (
        "compat/block_pool.py",
        "core/mapping.py",
        "core/reports/integrity.py",
        "store/eviction.py",
        "store/module_store.py",
    ),
    {
        "vllm.v1.core.block_pool:BlockPool": (
            "_insert_block_hash _remove_cached_block_hashes blocks evict_blocks free_block_queue "
            "free_blocks get_cached_block get_new_blocks get_num_free_blocks num_gpu_blocks "
            "reset_prefix_cache touch"
        ),
        "vllm.v1.core.kv_cache_utils": "BlockHash make_block_hash_with_group_id",
        "vllm.v1.core.kv_cache_utils:FreeKVCacheBlockQueue": (
            "append_n fake_free_list_head prepend_n remove"
        ),
        "vllm.v1.core.kv_cache_utils:KVCacheBlock": (
            "block_hash block_id is_null next_free_block ref_cnt"
        ),
    },
)
# The scheduler: each override holds back or adds something and calls vLLM's method.
SCHEDULER = Reliance(
    ("core/scheduler.py", "compat/scheduler.py", "core/reports/integrity.py"),
    {
        "vllm.v1.core.sched.scheduler:Scheduler": (
            "_enqueue_waiting_request _free_request _get_local_prefix_cache_hit "
            "_handle_blocked_waiting_request _holds_kv_blocks _inflight_prefill_reserved_blocks "
            "_preempt_request _reserve_prefill_lookahead add_request finish_requests "
            "reset_prefix_cache schedule update_from_output"
        ),
        "vllm.v1.core.sched.async_scheduler": "AsyncScheduler",
        "vllm.v1.core.sched.request_queue:SchedulingPolicy": "PRIORITY",
        "vllm.v1.core.kv_cache_manager:KVCacheManager": (
            "allocate_slots create_kv_cache_blocks get_block_ids get_blocks"
        ),
        "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator": "cache_blocks",
        "vllm.v1.engine": "EngineCoreOutput EngineCoreOutputs",
        "vllm.v1.engine:EngineCoreOutput": "finish_reason request_id stop_reason",
        "vllm.v1.engine:EngineCoreOutputs": "outputs",
    },
    "scheduler",
    "block_size connector deferred_frees kv_cache_config.kv_cache_tensors "
    "kv_cache_config.num_blocks kv_cache_manager.block_pool "
    "kv_cache_manager.coordinator.cache_blocks max_num_active_reqs max_num_scheduled_tokens "
    "policy requests running scheduler_config vllm_config waiting.add_request "
    "waiting.prepend_request waiting.remove_request",
    ("vllm.v1.core.sched.scheduler:Scheduler",),
)
# The connector: copies of a step, alone or beside a connector of the user's.
_CONNECTOR = Reliance(
    ("connector/connector.py", "connector/composed_connector.py", "steps/step.py"),
    {
        "vllm.distributed.kv_transfer": "get_kv_transfer_group has_kv_transfer_group",
        "vllm.model_executor.layers.attention.kv_transfer_utils": (
            "get_kv_transfer_group is_v1_kv_transfer_group"
        ),
        "vllm.distributed.kv_transfer.kv_connector.v1.base": "KVConnectorWorkerMetadata",
        "vllm.distributed.kv_transfer.kv_connector.v1.base:KVConnectorBase_V1": (
            "__init__ _get_connector_metadata _kv_cache_manager build_connector_meta "
            "build_connector_worker_meta build_kv_connector_stats build_prom_metrics "
            "get_kv_connector_stats get_num_new_matched_tokens handle_preemptions "
            "has_connector_metadata on_new_request register_kv_caches requires_kv_delivery "
            "save_kv_layer shutdown start_load_kv update_connector_output "
            "update_state_after_alloc wait_for_layer_load wait_for_save"
        ),
        "vllm.distributed.kv_transfer.kv_connector.v1.multi_connector:MultiConnector": (
            "__init__ _aggregate_request_finished _extra_async_saves build_connector_meta "
            "sub_connectors"
        ),
        "vllm.distributed.kv_transfer.kv_connector.v1.multi_connector": "MultiKVConnectorMetadata",
        "vllm.distributed.kv_transfer.kv_connector.v1.multi_connector:MultiKVConnectorMetadata": (
            "extra_async_saves metadata"
        ),
        "vllm.v1.core.kv_cache_manager:KVCacheBlocks": "get_block_ids",
        "vllm.v1.core.kv_cache_utils": "KVCacheBlockCopy",
        "vllm.v1.core.sched.output": "CachedRequestData",
        "vllm.v1.core.sched.output:CachedRequestData": (
            "all_token_ids new_block_ids new_token_ids num_computed_tokens num_output_tokens "
            "req_ids resumed_req_ids"
        ),
        "vllm.v1.core.sched.output:NewRequestData": "block_ids req_id",
        "vllm.v1.core.sched.output:SchedulerOutput": (
            "finished_req_ids kv_cache_block_copies kv_connector_metadata num_scheduled_tokens "
            "preempted_req_ids scheduled_cached_reqs scheduled_new_reqs total_num_scheduled_tokens"
        ),
        "vllm.v1.outputs:KVConnectorOutput": "kv_connector_worker_meta",
    },
)
# Metrics: made for each engine by the connector's class.
_METRICS = Reliance(
    ("core/reports/metrics.py", "core/reports/prometheus.py"),
    {
        "vllm.distributed.kv_transfer.kv_connector.v1.metrics:KVConnectorPromMetrics": (
            "_counter_cls _gauge_cls _histogram_cls _labelnames per_engine_labelvalues"
        ),
        "vllm.distributed.kv_transfer.kv_connector.v1.metrics:KVConnectorStats": "data",
    },
)
# The model runner: tokens get positions and slots of ours, and see blocks of their own; weights and
# adapters change under the KV that was computed with them.
_RUNNER = Reliance(
    ("worker/attention_rows.py", "compat/runner.py", "compat/worker.py"),
    {
        "vllm.v1.worker.utils:AttentionGroup": "build_metadata metadata_builders",
        "vllm.v1.attention.backend:AttentionMetadataBuilder": "build kv_cache_spec",
        "vllm.v1.attention.backend:CommonAttentionMetadata": (
            "_num_computed_tokens_cache _token_to_req_indices_cache block_table_tensor "
            "max_query_len num_reqs positions query_start_loc query_start_loc_cpu seq_lens "
            "seq_lens_cpu_upper_bound slot_mapping"
        ),
        "vllm.v1.worker.gpu_worker:Worker": "finish_weight_update reload_weights update_weights",
        "vllm.lora.worker_manager:WorkerLoRAManager": "_load_adapter",
    },
)
RUNNER_V1 = Reliance(
    ("worker/runner_inputs.py", "compat/runner.py"),
    {
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner": (
            "_prepare_inputs execute_model initialize_kv_cache"
        ),
        "vllm.v1.cudagraph_dispatcher:CudagraphDispatcher": "dispatch",
    },
    "model runner",
    "attn_groups cudagraph_dispatcher.dispatch get_model "
    "input_batch.block_table.compute_slot_mapping input_batch.req_ids positions "
    "query_start_loc.gpu query_start_loc.np vllm_config",
    ("vllm.v1.worker.gpu_model_runner:GPUModelRunner",),
)
RUNNER_V2 = Reliance(
    ("worker/runner_inputs.py", "compat/runner.py"),
    {
        "vllm.v1.worker.gpu.model_runner:GPUModelRunner": (
            "execute_model initialize_kv_cache prepare_attn"
        ),
        "vllm.v1.worker.gpu.model_states.interface:ModelState": (
            "prepare_dummy_inputs prepare_inputs"
        ),
        "vllm.v1.worker.gpu.block_table:BlockTables": "compute_slot_mappings",
        "vllm.v1.worker.gpu.input_batch:InputBatch": (
            "idx_mapping num_tokens_after_padding positions query_start_loc query_start_loc_np "
            "req_ids"
        ),
        "vllm.v1.worker.gpu.cudagraph_utils:CudaGraphManager": "dispatch",
        "vllm.v1.worker.gpu.cudagraph_utils:BatchExecutionDescriptor": (
            "cg_mode num_active_loras num_reqs num_tokens num_ubatches"
        ),
    },
    "model runner",
    "attn_groups block_tables cudagraph_manager device get_model max_num_tokens model_state "
    "vllm_config",
    ("vllm.v1.worker.gpu.model_runner:GPUModelRunner",),
)
# A layer's attention: how it writes a slot, and what it computes of queries and keys.
LAYER = Reliance(
    ("compat/worker.py", "worker/attention_probe.py", "worker/kv_caches.py"),
    owner="attention layer",
    attributes="head_size impl kv_cache_dtype num_kv_heads",
    classes=("vllm.model_executor.layers.attention.attention:Attention",),
)
BACKEND = Reliance(
    ("compat/worker.py", "worker/attention_probe.py"),
    owner="attention backend",
    attributes="do_kv_cache_update forward scale",
    classes=(
        "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl",
        "vllm.v1.attention.backends.flash_attn:FlashAttentionImpl",
        "vllm.v1.attention.backends.flashinfer:FlashInferImpl",
        "vllm.v1.attention.backends.triton_attn:TritonAttentionImpl",
    ),
)

RELIANCES = (
    _START,
    _PROMPTS,
    _MARKS,
    _ANSWERS,
    _CLIENTS,
    _REQUESTS,
    _BLOCKS,
    SCHEDULER,
    _CONNECTOR,
    _METRICS,
    _RUNNER,
    RUNNER_V1,
    RUNNER_V2,
    LAYER,
    BACKEND,
)
