"""vLLM's requests: the order of their tokens, and the hashes of their blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm_promptcache.compat.wrap import wrap

if TYPE_CHECKING:
    from vllm.v1.request import Request

# An attribute of vLLM's request, see `name_adapter`.
_ADAPTER = "prompt_module_adapter"


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
