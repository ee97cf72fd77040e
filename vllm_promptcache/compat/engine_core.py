"""The engine core: what front ends may ask it, and what clients do to adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_promptcache.compat.wrap import wrap


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
