"""Workers: a step between its preparation and its forward pass, weights and adapters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from vllm_promptcache.compat.wrap import wrap

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.attention.backend import CommonAttentionMetadata


def after_prepare_inputs(act: Callable[[Any, Any], None]) -> None:
    """Calls `act(model_runner, scheduler_output)` when a V1 runner has prepared a step's inputs.

    By then the slot mapping is computed from vLLM's own indexes, and the positions that the model
    gets may be replaced.
    Can go when the V2 runner is the only one: its `ModelState` may return positions.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    def prepare_inputs(original: Any, runner: Any, scheduler_output: Any, *args: Any) -> Any:
        prepared = original(runner, scheduler_output, *args)
        act(runner, scheduler_output)
        return prepared

    wrap(GPUModelRunner, "_prepare_inputs", prepare_inputs)


def leave_layers_alone(is_ours: Callable[[Any], bool]) -> None:
    """Keeps attention layers from asking a connector for what it never has for a layer.

    Symptom without it: in each step each layer looks up its name, its context and the connector's
    metadata, plain requests' too.
    Can go when a connector can say once that nothing of it is done layer by layer.

    Args:
        is_ours: Whether a worker's connector is such a one.
    """
    import vllm.model_executor.layers.attention.kv_transfer_utils as utils

    def is_asked(original: Callable[[], bool]) -> bool:
        return not is_ours(utils.get_kv_transfer_group()) and original()

    wrap(utils, "is_v1_kv_transfer_group", is_asked)


def after_initialize_kv_cache(act: Callable[[Any], None]) -> None:
    """Calls `act(model_runner)` when a V1 runner has made its KV cache; its model is there then.

    Can go when a connector is given the model.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    def initialize_kv_cache(original: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(runner, *args, **kwargs)
        act(runner)
        return made

    wrap(GPUModelRunner, "initialize_kv_cache", initialize_kv_cache)


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


def after_reload_weights(act: Callable[[Any], None]) -> None:
    """Calls `act(worker)` when a worker has other weights than before.

    vLLM leaves it to the user to reset the prefix cache then; what is written to disk must not wait
    for that, since it stays.
    Can go when workers tell connectors.
    """
    from vllm.v1.worker.gpu_worker import Worker

    def change_weights(original: Any, worker: Any, *args: Any, **kwargs: Any) -> Any:
        changed = original(worker, *args, **kwargs)
        act(worker)
        return changed

    for name in ("reload_weights", "update_weights", "finish_weight_update"):
        wrap(Worker, name, change_weights)


def hide_llvmlite() -> None:
    """Lets another engine start in a process that has numba loaded.

    Symptom without it: "'_lib_fn_wrapper' object has no attribute 'get'" when vLLM starts.
    Cause: `vllm.triton_utils.dispatcher` reads `vars()` of everything in every loaded module, and
    llvmlite's lazy library answers any attribute, `__dict__` included, with a function.
    Can go when either of them is more careful.
    """
    from llvmlite.binding import ffi

    ffi.lib._fntab.setdefault("__dict__", {})


def attention_layers(vllm_config: VllmConfig, names: Iterable[str]) -> dict[str, Any]:
    """vLLM's attention layers by name."""
    layers = vllm_config.compilation_config.static_forward_context
    return {name: layers[name] for name in names}


def kv_writer(layer: Any) -> Callable[..., None]:
    """The backend's writer of keys and values, as `kernels.layout.WriteKV`."""

    def write(
        key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None:
        layer.impl.do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)

    return write


def around_load_adapter(
    fingerprint: Callable[[str], bytes], act: Callable[[int, bytes], None]
) -> None:
    """Calls `act(lora_int_id, fingerprint)` when a worker has read an adapter's files.

    Args:
        fingerprint: Of the files at a path.
        act: Gets what it was before and after; nothing, if these differ.

    Can go when workers tell connectors.
    """
    from vllm.lora.worker_manager import WorkerLoRAManager

    def load_adapter(original: Any, manager: Any, lora_request: Any) -> Any:
        before = fingerprint(lora_request.lora_path)
        adapter = original(manager, lora_request)
        after = fingerprint(lora_request.lora_path)
        # What was written meanwhile may be in part of it.
        act(lora_request.lora_int_id, after if after == before else b"")
        return adapter

    wrap(WorkerLoRAManager, "_load_adapter", load_adapter)
