"""What front ends may ask of the engine core about modules; runs between two steps.

Reached by `call_utility(NAME, ...)`; arguments and answers are plain lists, since they travel.
"""

from __future__ import annotations

from typing import Any

from vllm_promptcache.errors import ConflictError
from vllm_promptcache.store import PIN_OWNER, PinnedModule

STATUS_UTILITY = "prompt_module_status"
PIN_UTILITY = "prompt_module_pin"


def prompt_module_status(engine_core: Any, keys: list[bytes]) -> list[tuple[bool, int, bool]]:
    """Tells for each module key: is it resident, how many requests found it so, is it pinned.

    Mutates nothing but the store's memory of modules that were evicted or whose pins expired.
    """
    residency = engine_core.scheduler.residency
    residency.pins.expire()
    store = residency.store
    pinned = store.held(PIN_OWNER)
    return [(store.lookup(key) is not None, store.num_hits(key), key in pinned) for key in keys]


def prompt_module_pin(
    engine_core: Any, schema: str, modules: list[tuple[bytes, int, float | None]]
) -> str:
    """Pins these modules of a schema and no other of it; see `Pins.replace`.

    Returns:
        Why they cannot be pinned, empty if they are.
    """
    try:
        pinned = [PinnedModule(*module) for module in modules]
        engine_core.scheduler.residency.pins.replace(schema, pinned)
    except ConflictError as error:
        return str(error)
    return ""
