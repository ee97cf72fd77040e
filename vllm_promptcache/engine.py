"""What an engine with prompt modules needs, and what it cannot be combined with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_promptcache.compat.check import check_names
from vllm_promptcache.compat.worker import hide_llvmlite
from vllm_promptcache.config import CONFIG_KEY, PromptModulesConfig
from vllm_promptcache.cpu_types import emulation_notice
from vllm_promptcache.errors import UnsupportedError
from vllm_promptcache.log import module_logger
from vllm_promptcache.quality.first_token import NUM_TOKENS

if TYPE_CHECKING:
    from vllm.config import CacheConfig, ModelConfig, VllmConfig
    from vllm.engine.arg_utils import EngineArgs

# The smaller the blocks, the more of a module is shared by reference and the less of it is copied;
# vLLM's CPU kernels take multiples of 32, and 128 by default.
CPU_BLOCK_SIZE = 32

logger = module_logger(__name__)

# A checkpoint that asks for a type of its own is looked at in the worker.
_CACHE_DTYPES = ("auto", "bfloat16", "fp8", "fp8_e4m3")
_SCHEDULER = "vllm_promptcache.core.scheduler.PromptModuleScheduler"
_ASYNC_SCHEDULER = "vllm_promptcache.core.scheduler.PromptModuleAsyncScheduler"


def prepare_engine_args(args: EngineArgs) -> None:
    """Sets the engine options that prompt modules need. Mutates `args`.

    Raises:
        UnsupportedError: The user set an option that cannot be combined with prompt modules, or
            vLLM lacks a name that the hooks rely on.
    """
    from vllm.platforms import current_platform

    from vllm_promptcache.connector.composed_connector import modules_alone

    check_names()
    hide_llvmlite()
    _require(not os.environ.get("VLLM_USE_RUST_FRONTEND"), "the Rust front end")
    _require(args.enable_prefix_caching is not False, "--no-enable-prefix-caching")
    _require(args.speculative_config is None, "speculative decoding")
    if args.block_size is None and current_platform.is_cpu():
        args.block_size = CPU_BLOCK_SIZE
    config = PromptModulesConfig.parse((args.additional_config or {}).get(CONFIG_KEY))
    if config.shadow and 0 <= args.max_logprobs < NUM_TOKENS:
        args.max_logprobs = NUM_TOKENS
    args.enable_prefix_caching = True
    args.disable_hybrid_kv_cache_manager = True
    if args.kv_transfer_config is None and args.kv_offloading_size is None:
        args.kv_transfer_config = modules_alone()


def check_engine(vllm_config: VllmConfig) -> None:
    """Refuses models and settings for which reuse would be wrong or was never tried.

    Raises:
        UnsupportedError: With the reason.
    """
    _check_model(vllm_config.model_config)
    _check_cache(vllm_config.cache_config)
    parallel = vllm_config.parallel_config
    num_context_ranks = (
        parallel.decode_context_parallel_size * parallel.prefill_context_parallel_size
    )
    _require(num_context_ranks == 1, "context parallelism")
    # It cuts a batch by its requests, and these may be several rows of attention.
    _require(not parallel.use_ubatching, "microbatches (--enable-dbo, --ubatch-size)")
    # Each worker has a scheduler of its own then, which hears of that one's files and probes only.
    is_launched = parallel.distributed_executor_backend == "external_launcher"
    _require(parallel.world_size == 1 or not is_launched, "workers of an external launcher")
    _require(vllm_config.scheduler_config.scheduler_cls is None, "a scheduler of your own")
    # It gives the experts of every token, and knows none of those that modules bring.
    _require(not vllm_config.aux_output_config.enabled, "--enable-return-routed-experts")
    config = PromptModulesConfig.of(vllm_config)
    if config.shadow:
        is_logits = vllm_config.model_config.logprobs_mode.endswith("logits")
        _require(not is_logits, "logits in place of log-probabilities and --prompt-modules-shadow")
    if config.dir is not None:
        _check_folder(Path(config.dir))
        _check_shards(vllm_config)


def _check_shards(vllm_config: VllmConfig) -> None:
    """Refuses engines where nobody knows of all shards that a module's KV depends on."""
    # Engines share the experts, and none knows whether another one's have changed.
    _require(
        vllm_config.parallel_config.data_parallel_size == 1 or not vllm_config.model_config.is_moe,
        "experts of several data-parallel engines and --prompt-modules-dir",
    )


def warn_of_emulation(vllm_config: VllmConfig) -> None:
    """Logs one line if the CPU emulates the model's type; the type is the user's to choose.

    Of several API servers, each of which comes here, the first one speaks.
    """
    notice = emulation_notice(str(vllm_config.model_config.dtype).removeprefix("torch."))
    if notice and vllm_config.parallel_config._api_process_rank == 0:
        logger.warning_once(notice)


def _check_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnsupportedError(
            f"prompt modules cannot be kept in {str(path)!r}: {error.strerror}",
            "name a folder that can be written",
        ) from None


def _check_cache(cache: CacheConfig) -> None:
    if cache.cache_dtype not in _CACHE_DTYPES:
        raise UnsupportedError(
            f"prompt modules cannot be combined with --kv-cache-dtype {cache.cache_dtype}",
            f"set it to one of {', '.join(_CACHE_DTYPES)}",
        )
    # They differ from the others in type.
    _require(not cache.kv_cache_dtype_skip_layers, "--kv-cache-dtype-skip-layers")


def _check_model(model: ModelConfig) -> None:
    config: Any = model.hf_text_config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = model.get_sliding_window()
    has_window = window is not None and getattr(config, "use_sliding_window", True)
    _require(model.runner_type == "generate", "a pooling model")
    _require(not model.is_encoder_decoder, "an encoder-decoder model")
    _require(
        not (model.is_hybrid or model.is_attention_free or model.has_inner_state),
        "a model with recurrent state (Mamba and hybrids): its state is not a list of tokens",
    )
    _require(
        not has_window and kinds <= {"full_attention"},
        "a model with sliding-window attention: its window counts tokens by their place in the "
        "block table, which prompt modules permute",
    )
    _require(
        not model.uses_alibi,
        "a model with ALiBi: its bias counts tokens by their place in the block table, which "
        "prompt modules permute",
    )
    _require(not model.uses_mrope, "a model with multi-dimensional positions (M-RoPE)")
    _require(not model.use_mla, "a model with latent attention (MLA)")


def select_scheduler(vllm_config: VllmConfig) -> None:
    """Sets the scheduler class that fits the engine's scheduling mode. Mutates `vllm_config`."""
    scheduler = vllm_config.scheduler_config
    scheduler.scheduler_cls = _ASYNC_SCHEDULER if scheduler.async_scheduling else _SCHEDULER


def compose_connectors(vllm_config: VllmConfig) -> None:
    """Puts our connector beside one that the user has chosen. Mutates `vllm_config`."""
    from vllm_promptcache.connector.composed_connector import compose
    from vllm_promptcache.connector.connector import PromptModuleConnector

    chosen = vllm_config.kv_transfer_config
    assert chosen is not None, "ours is the default"
    # From 0.33 on vLLM gives all its stages the same number of blocks, but not beside others.
    is_simple = chosen.has_connector("SimpleCPUOffloadConnector")
    num_stages = vllm_config.parallel_config.pipeline_parallel_size
    what = "SimpleCPUOffloadConnector and pipeline parallelism"
    _require(num_stages == 1 or not is_simple, what)
    if chosen.kv_connector != PromptModuleConnector.__name__:
        vllm_config.kv_transfer_config = compose(chosen)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise UnsupportedError(
            f"prompt modules cannot be combined with {what}",
            "leave the option out, or start without --enable-prompt-modules",
        )
