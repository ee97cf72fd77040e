"""Model runners, V1 and V2: a step between its preparation and its forward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from vllm_promptcache.compat.wrap import wrap

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.attention.backend import CommonAttentionMetadata


def _runner_class(vllm_config: VllmConfig) -> type[Any]:
    """The class of the engine's model runner, which vLLM chooses."""
    name = "gpu.model_runner" if vllm_config.use_v2_model_runner else "gpu_model_runner"
    runner: type[Any] = resolve_name(f"vllm.v1.worker.{name}:GPUModelRunner")
    return runner


def after_initialize_kv_cache(vllm_config: VllmConfig, act: Callable[[Any], None]) -> None:
    """Calls `act(runner)` when a runner has made its KV cache; its model is there then.

    Can go when a connector is given the model.
    """

    def initialize_kv_cache(original: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(runner, *args, **kwargs)
        act(runner)
        return made

    wrap(_runner_class(vllm_config), "initialize_kv_cache", initialize_kv_cache)


def before_execute_model(vllm_config: VllmConfig, act: Callable[[Any], None]) -> None:
    """Calls `act(scheduler_output)` before a runner prepares anything of a step.

    Can go when connectors are told of a step before it is prepared: V2 calls `handle_preemptions`
    when attention is prepared already.
    """

    def execute_model(
        original: Any, runner: Any, scheduler_output: Any, *args: Any, **kwargs: Any
    ) -> Any:
        act(scheduler_output)
        return original(runner, scheduler_output, *args, **kwargs)

    wrap(_runner_class(vllm_config), "execute_model", execute_model)


def after_prepare_inputs(vllm_config: VllmConfig, act: Callable[[Any], None]) -> None:
    """Calls `act(prepared)` when slots are computed, from vLLM's own indexes, and no attention yet.

    What is prepared is V1's runner itself, and V2's batch.
    Can go when a connector can give tokens positions and slots.
    """

    def prepare_inputs(original: Any, runner: Any, *args: Any) -> Any:
        prepared = original(runner, *args)
        act(runner)
        return prepared

    def prepare_attn(original: Any, runner: Any, input_batch: Any) -> Any:
        prepared = original(runner, input_batch)
        act(input_batch)
        return prepared

    runner_class = _runner_class(vllm_config)
    if vllm_config.use_v2_model_runner:
        wrap(runner_class, "prepare_attn", prepare_attn)
    else:
        wrap(runner_class, "_prepare_inputs", prepare_inputs)


def replace_positions(
    runner: Any, of_batch: Callable[[Any], torch.Tensor], of_dummies: Callable[[int], torch.Tensor]
) -> None:
    """Gives the model of a V2 runner other positions than its batch has.

    Can go when a model state can be chosen.

    Args:
        runner: The runner.
        of_batch: Called with the batch of a step, whose attention is prepared.
        of_dummies: Called with a number of tokens, where graphs are captured.
    """

    def prepare_inputs(original: Any, input_batch: Any, *args: Any) -> Any:
        return {**original(input_batch, *args), "positions": of_batch(input_batch)}

    def prepare_dummy_inputs(original: Any, num_reqs: int, num_tokens: int) -> Any:
        return {**original(num_reqs, num_tokens), "positions": of_dummies(num_tokens)}

    wrap(runner.model_state, "prepare_inputs", prepare_inputs)
    wrap(runner.model_state, "prepare_dummy_inputs", prepare_dummy_inputs)


def never_replay_full(runner: Any, is_regular: Callable[[], bool]) -> None:
    """Keeps steps that are not regular from being replayed from a full CUDA graph.

    Symptom without it: wrong answers, without a word. A replay reads block tables and lengths from
    buffers of one row a request, and runs no Python.
    Can go when a connector can say so of a step; `requires_piecewise_for_cudagraph` is of all.
    """
    from vllm.config.compilation import CUDAGraphMode

    def dispatch_v1(original: Any, *args: Any, invalid_modes: Any = None, **kwargs: Any) -> Any:
        if not is_regular():
            invalid_modes = {*(invalid_modes or ()), CUDAGraphMode.FULL}
        return original(*args, invalid_modes=invalid_modes, **kwargs)

    def dispatch_v2(
        original: Any, num_reqs: int, num_tokens: int, *args: Any, **kwargs: Any
    ) -> Any:
        found = original(num_reqs, num_tokens, *args, **kwargs)
        if found.cg_mode != CUDAGraphMode.FULL or is_regular():
            return found
        return type(found)(
            cg_mode=CUDAGraphMode.NONE,
            num_tokens=num_tokens,
            num_reqs=num_reqs,
            num_active_loras=found.num_active_loras,
            num_ubatches=found.num_ubatches,
        )

    if runner.vllm_config.use_v2_model_runner:
        wrap(runner.cudagraph_manager, "dispatch", dispatch_v2)
    else:
        wrap(runner.cudagraph_dispatcher, "dispatch", dispatch_v1)


def split_attention_rows(
    runner: Any, split: Callable[[CommonAttentionMetadata, int], CommonAttentionMetadata | None]
) -> None:
    """Lets `split(batch, block_size)` replace what attention backends are told of a batch.

    None leaves it as it is. The size is that of the backend's blocks.
    Can go when a connector can choose the blocks that a request's tokens see.
    """

    def build(
        builder: Any, original: Any, common_prefix_len: int, batch: Any, *args: Any, **options: Any
    ) -> Any:
        if (rows := split(batch, builder.kv_cache_spec.block_size)) is not None:
            # What all requests of the batch share may be more than some of the rows see.
            return original(0, rows, *args, **options)
        return original(common_prefix_len, batch, *args, **options)

    for group in (group for groups in runner.attn_groups for group in groups):
        for builder in group.metadata_builders:
            wrap(builder, "build", functools.partial(build, builder))
