"""The hooks into vLLM 0.32, and their self-check.

Everything that is not public API of vLLM is named here: in `PRIVATE_NAMES`, in a function below, or
in a file that a heading there names, which overrides or calls what is listed under it. Each hook
says what it is for and under which condition it can go. All are idempotent, and none does anything
for an engine that has prompt modules off.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vllm_promptcache.errors import UnsupportedError

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.attention.backend import CommonAttentionMetadata
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

MODULE_HASH_PREFIX = b"prompt-module:"
# An attribute of vLLM's request, see `name_adapter`.
_ADAPTER = "prompt_module_adapter"

PRIVATE_NAMES = {
    # Options: `plugin.py`.
    "vllm.engine.arg_utils": (
        "EngineArgs.add_cli_args",
        "EngineArgs.from_cli_args",
        "EngineArgs.create_engine_config",
        "get_kwargs",
    ),
    # Which of several API servers this is: `engine.py`.
    "vllm.config": ("ParallelConfig._api_process_rank",),
    # Prompts: `entrypoints/renderer.py`.
    "vllm.renderers.registry": ("RENDERER_REGISTRY.load_renderer",),
    "vllm.renderers.base": (
        "BaseRenderer._tokenize_singleton_prompt",
        "BaseRenderer._tokenize_singleton_prompt_async",
        "BaseRenderer._process_tokens",
        "BaseRenderer._process_tokens_async",
    ),
    "vllm.renderers.online_renderer": (
        "OnlineRenderer.preprocess_cmpl",
        "OnlineRenderer.preprocess_chat",
    ),
    "vllm.entrypoints.openai.completion.serving": (
        "OpenAIServingCompletion.request_output_to_completion_response",
        "OpenAIServingCompletion.completion_stream_generator",
    ),
    "vllm.entrypoints.openai.chat_completion.serving": (
        "OpenAIServingChat.chat_completion_full_generator",
        "OpenAIServingChat.chat_completion_stream_generator",
    ),
    "vllm.v1.engine.input_processor": ("InputProcessor.process_inputs",),
    # `entrypoints/reading_order.py`; reasons: `entrypoints/ended.py`.
    "vllm.v1.engine.output_processor": (
        "OutputProcessor.add_request",
        "OutputProcessor.process_outputs",
        "RequestOutputCollector.put",
    ),
    # Routes: `plugin.py`, `entrypoints/engine_modules.py`.
    "vllm.plugins": ("load_endpoint_plugins",),
    # Scheduling: `core/scheduler.py`.
    "vllm.v1.core.sched.scheduler": (
        "Scheduler._enqueue_waiting_request",
        "Scheduler._handle_blocked_waiting_request",
        "Scheduler._get_local_prefix_cache_hit",
        "Scheduler._preempt_request",
        "Scheduler._free_request",
        "Scheduler._inflight_prefill_reserved_blocks",
        "Scheduler._holds_kv_blocks",
    ),
    "vllm.v1.core.sched.async_scheduler": ("AsyncScheduler",),
    "vllm.v1.core.kv_cache_manager": (
        "KVCacheManager.create_kv_cache_blocks",
        "KVCacheManager.allocate_slots",
    ),
    "vllm.v1.core.kv_cache_coordinator": ("KVCacheCoordinator.cache_blocks",),
    "vllm.v1.core.block_pool": (
        "BlockPool._insert_block_hash",
        "BlockPool.evict_blocks",
        "BlockPool.touch",
        "BlockPool.free_blocks",
        "BlockPool.get_new_blocks",
    ),
    "vllm.v1.request": ("Request.update_block_hashes",),
    "vllm.v1.core.kv_cache_utils": (
        "make_block_hash_with_group_id",
        "_gen_lora_extra_hash_keys",
        "FreeKVCacheBlockQueue.remove",
        "FreeKVCacheBlockQueue.append_n",
        "FreeKVCacheBlockQueue.prepend_n",
    ),
    "vllm.v1.engine.core": (
        "EngineCore.add_lora",
        "EngineCore.remove_lora",
        "get_request_block_hasher",
    ),
    # Adapters: `core/adapters.py`, `worker/connector.py`.
    "vllm.lora.worker_manager": ("WorkerLoRAManager._load_adapter",),
    # Utilities: `call_utility`, `entrypoints/engine_modules.py`; `entrypoints/affinity.py`.
    "vllm.v1.engine.core_client": (
        "InprocClient",
        "SyncMPClient.call_utility",
        "AsyncMPClient.call_utility_async",
        "DPLBAsyncMPClient.call_utility_all_async",
        "DPLBAsyncMPClient.get_core_engine_for_request",
    ),
    # Workers: `worker/`, `split_attention_rows`.
    "vllm.v1.worker.gpu_model_runner": (
        "GPUModelRunner._prepare_inputs",
        "GPUModelRunner.initialize_kv_cache",
    ),
    "vllm.v1.worker.block_table": ("MultiGroupBlockTable.compute_slot_mapping",),
    "vllm.v1.worker.utils": ("AttentionGroup.build_metadata",),
    "vllm.v1.attention.backend": ("AttentionMetadataBuilder.build", "CommonAttentionMetadata"),
    "vllm.v1.worker.gpu_worker": (
        "Worker.reload_weights",
        "Worker.update_weights",
        "Worker.finish_weight_update",
    ),
    # Another connector beside ours: `worker/composed_connector.py`.
    "vllm.distributed.kv_transfer.kv_connector.v1.multi_connector": (
        "MultiConnector._aggregate_request_finished",
        "MultiConnector.sub_connectors",
    ),
    "vllm.distributed.kv_transfer.kv_connector.v1.base": (
        "KVConnectorBase_V1.get_num_new_matched_tokens",
        "KVConnectorBase_V1.handle_preemptions",
        "KVConnectorBase_V1.wait_for_save",
    ),
}


def check_private_names() -> None:
    """Checks that this vLLM has every private name that the hooks rely on.

    Raises:
        UnsupportedError: Names are missing; all of them are listed, with vLLM's version.
    """
    missing = [
        f"{module}.{name}"
        for module, names in PRIVATE_NAMES.items()
        for name in names
        if not _exists(module, name)
    ]
    if missing:
        import vllm

        raise UnsupportedError(
            f"vLLM {vllm.__version__} lacks what prompt modules hook into: {', '.join(missing)}",
            "install vllm>=0.32,<0.33",
        )


def _exists(module: str, name: str) -> bool:
    try:
        functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError):
        return False
    return True


def wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replaces `owner.name` by `wrapper(original, ...)`, once however often it is called.

    Args:
        owner: A module, class or object.
        name: A function, method, static method or class method of it.
        wrapper: Called with the original and its arguments (`self` and `cls` included).
    """
    found = inspect.getattr_static(owner, name, None)
    kind = type(found) if isinstance(found, staticmethod | classmethod) else None
    original = found.__func__ if kind else getattr(owner, name)
    if getattr(original, "_is_prompt_module_hook", False):
        return

    @functools.wraps(original)
    def hook(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    hook._is_prompt_module_hook = True  # type: ignore[attr-defined]
    setattr(owner, name, kind(hook) if kind else hook)


def choose_published_blocks(
    manager: KVCacheManager, may_publish: Callable[[Request, int], bool]
) -> None:
    """Keeps blocks out of vLLM's prefix cache while `may_publish(request, num_tokens)` is false.

    Symptom without it: vLLM publishes the blocks of an encode while they still hold placeholders.
    Cause: it publishes every full block of a request.
    Can go when a request can opt out of publishing its blocks.
    """

    def cache_blocks(original: Callable[..., None], request: Request, num_tokens: int) -> None:
        if may_publish(request, num_tokens):
            original(request, num_tokens)

    wrap(manager.coordinator, "cache_blocks", cache_blocks)


def allocate_ahead(manager: KVCacheManager, num_ahead: Callable[[Request], int]) -> None:
    """Gives a request slots for its first `num_ahead(request)` tokens as soon as it gets any.

    vLLM allocates for the tokens of a step; slots that lie ahead are there for drafted tokens.
    Can go when a connector can say how many tokens a request needs slots for.
    """

    def allocate_slots(
        original: Callable[..., Any], request: Request, num_new_tokens: int, **options: Any
    ) -> Any:
        num_cached = sum(
            options.get(name, 0)
            for name in ("num_new_computed_tokens", "num_external_computed_tokens")
        )
        num_tokens = request.num_computed_tokens + num_cached + num_new_tokens
        lookahead = options.pop("num_lookahead_tokens", 0)
        lookahead = max(lookahead, num_ahead(request) - num_tokens)
        return original(request, num_new_tokens, num_lookahead_tokens=lookahead, **options)

    wrap(manager, "allocate_slots", allocate_slots)


@contextlib.contextmanager
def limited_step(scheduler: Scheduler, num_tokens: int | None) -> Iterator[None]:
    """Has the scheduler schedule so many tokens at most inside; None for as many as usual.

    Can go when a connector can say how many tokens a step may have.
    """
    usual = scheduler.max_num_scheduled_tokens
    if num_tokens is not None:
        scheduler.max_num_scheduled_tokens = min(num_tokens, usual)
    try:
        yield
    finally:
        scheduler.max_num_scheduled_tokens = usual


def reorder_prompt(request: Request, token_ids: list[int]) -> None:
    """Puts the tokens of a prompt into another order, before the request is scheduled.

    New lists, since an engine in the front end's process shares the old one with it.
    Can go when a request can be exchanged for another one as it enters the scheduler.
    """
    request.prompt_token_ids = token_ids
    request._all_token_ids[:] = token_ids


def set_block_hasher(request: Request, hasher: Callable[[Request], list[Any]]) -> None:
    """Makes vLLM know the blocks of `request` by hashes of ours; those that it has are forgotten.

    Can go when a request can bring its own hasher.
    """
    request._block_hasher = hasher
    request.block_hashes.clear()
    request.update_block_hashes()


def never_hash_blocks(plan_key: str) -> None:
    """Keeps vLLM's hashes from requests with modules.

    Symptom without it: a plain request with the same tokens reads KV that was computed behind
    modules, since the hash of a block does not know of modules or positions.
    Can go when a request can bring its own hasher; see `set_block_hasher`.
    """
    import vllm.v1.engine.core as core

    def get_request_block_hasher(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        hasher = original(*args, **kwargs)

        def hash_blocks(request: Any) -> list[Any]:
            params = request.sampling_params
            is_modular = params is not None and plan_key in (params.extra_args or ())
            return [] if is_modular else hasher(request)

        return hash_blocks

    wrap(core, "get_request_block_hasher", get_request_block_hasher)


def hash_adapter_names() -> None:
    """Makes the name that `name_adapter` gives part of the hashes of a request's blocks.

    Symptom without it: a request reads KV of the weights that were loaded before under the same
    name and path.
    Can go when vLLM tells adapters apart by their weights.
    """
    import vllm.v1.core.kv_cache_utils as utils

    def lora_keys(original: Callable[..., Any], request: Any) -> list[Any]:
        # vLLM hashes all parts of a key, and tells the second one in its events.
        name = getattr(request, _ADAPTER, b"").hex()
        return [(*key, name) for key in original(request)] if name else original(request)

    wrap(utils, "_gen_lora_extra_hash_keys", lora_keys)


def name_adapter(request: Request, name: bytes) -> None:
    """Names the weights that a request with an adapter runs with, and its blocks by that name.

    Hashes of its blocks that were made before are forgotten.
    Can go when vLLM tells adapters apart by their weights.
    """
    setattr(request, _ADAPTER, name)
    request.block_hashes.clear()
    request.update_block_hashes()


def adapter_of(request: Request) -> bytes:
    """What `name_adapter` named the weights of a request; empty for one without an adapter."""
    if request.lora_request is None:
        return b""
    name: bytes = getattr(request, _ADAPTER)
    return name


def after_reload_adapter(act: Callable[[Any, int], None]) -> None:
    """Calls `act(scheduler, lora_int_id)` when a client had an adapter loaded again, or removed.

    vLLM leaves it to the user to use another path then.
    Can go when vLLM tells adapters apart by their weights.
    """
    from vllm.v1.engine.core import EngineCore

    def add_lora(original: Any, engine_core: Any, lora_request: Any) -> Any:
        added = original(engine_core, lora_request)
        if lora_request.load_inplace:
            act(engine_core.scheduler, lora_request.lora_int_id)
        return added

    def remove_lora(original: Any, engine_core: Any, lora_id: int) -> Any:
        removed = original(engine_core, lora_id)
        act(engine_core.scheduler, lora_id)
        return removed

    wrap(EngineCore, "add_lora", add_lora)
    wrap(EngineCore, "remove_lora", remove_lora)


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


def module_key_of(block: KVCacheBlock) -> bytes | None:
    """The module whose hash `block` carries, see `publish_block`; None for an ordinary block."""
    block_hash = block.block_hash
    if block_hash is None or not block_hash.startswith(MODULE_HASH_PREFIX):
        return None
    # Behind the key: the block's index and vLLM's group id, four bytes each.
    return block_hash[len(MODULE_HASH_PREFIX) : -8]


def before_allocation(block_pool: BlockPool, act: Callable[[int], None]) -> None:
    """Calls `act(num_blocks)` before the pool takes as many blocks from its free list.

    Can go when a block pool takes an eviction policy.
    """

    def get_new_blocks(original: Callable[..., Any], num_blocks: int) -> Any:
        act(num_blocks)
        return original(num_blocks)

    wrap(block_pool, "get_new_blocks", get_new_blocks)


def first_free_block(block_pool: BlockPool) -> KVCacheBlock | None:
    """The block that the pool would hand out next; each knows the one behind it."""
    if not block_pool.get_num_free_blocks():
        return None
    return block_pool.free_block_queue.fake_free_list_head.next_free_block


def has_empty_blocks(block_pool: BlockPool, num_blocks: int) -> bool:
    """Whether the pool would hand out so many blocks without forgetting what is in them."""
    if num_blocks > block_pool.get_num_free_blocks():
        return False
    block = first_free_block(block_pool)
    for _ in range(num_blocks):
        if block is None or block.block_hash is not None:
            return False
        block = block.next_free_block
    return True


def move_in_free_list(
    block_pool: BlockPool, blocks: Sequence[KVCacheBlock], *, to_end: bool
) -> None:
    """Moves free blocks to the end of the free list, or to its head."""
    queue = block_pool.free_block_queue
    for block in blocks:
        queue.remove(block)
    (queue.append_n if to_end else queue.prepend_n)(list(blocks))


def publish_block(block_pool: BlockPool, block: KVCacheBlock, key: bytes, index: int) -> bytes:
    """Makes `block` carry the hash of block `index` of module `key`; returns the hash.

    The hash cannot be that of an ordinary block: it is longer, and starts with a prefix.
    """
    from vllm.v1.core.kv_cache_utils import BlockHash, make_block_hash_with_group_id

    name = BlockHash(MODULE_HASH_PREFIX + key + index.to_bytes(4, "big"))
    block_hash = make_block_hash_with_group_id(name, 0)
    block_pool._insert_block_hash(block_hash, block, num_tokens=None)
    return block_hash


def add_utility(name: str, answer: Callable[..., Any]) -> None:
    """Lets front ends call `answer(engine_core, ...)` by `call_utility_async(name, ...)`.

    Can go when plugins can register utilities of the engine core.
    """
    from vllm.v1.engine.core import EngineCore

    setattr(EngineCore, name, answer)


def call_utility(client: Any, name: str, *args: Any) -> Any:
    """Calls a utility from a process that waits for its answer, as `vllm.LLM` does.

    Args:
        client: Its client of the engine core, which may hold the engine core itself.
        name: See `add_utility`.
        args: Its arguments.
    """
    if (call := getattr(client, "call_utility", None)) is not None:
        return call(name, *args)
    return getattr(client.engine_core, name)(*args)


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
