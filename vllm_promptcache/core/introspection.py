"""What front ends may ask the engine core about modules; runs between two steps."""

from __future__ import annotations

from typing import Any

UTILITY = "prompt_module_status"


def prompt_module_status(engine_core: Any, keys: list[bytes]) -> list[tuple[bool, int]]:
    """Tells for each module key whether it is resident, and how many requests found it so.

    Reached by `call_utility_async(UTILITY, keys)`. Mutates nothing but the store's memory of
    modules that were evicted.
    """
    store = engine_core.scheduler.module_store
    return [(store.lookup(key) is not None, store.num_hits(key)) for key in keys]
