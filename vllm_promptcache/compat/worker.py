"""Workers: attention layers, weights and adapters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from vllm_promptcache.compat.wrap import wrap

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig


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
    """Lets an engine start in a process that has numba loaded; others have nothing to hide.

    Symptom without it: "'_lib_fn_wrapper' object has no attribute 'get'" when vLLM starts.
    Cause: `vllm.triton_utils.dispatcher` reads `vars()` of everything in every loaded module, and
    llvmlite's lazy library answers any attribute, `__dict__` included, with a function.
    Can go when either of them is more careful.
    """
    if (ffi := sys.modules.get("llvmlite.binding.ffi")) is not None:
        ffi.lib._fntab["__dict__"] = {}


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
