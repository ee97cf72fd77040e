"""What front ends may ask of the engine core about modules; runs between two steps.

Reached by `call_utility(NAME, ...)`; arguments and answers are plain lists, since they travel.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, astuple, dataclass
from typing import Any

from vllm_promptcache.errors import ConflictError
from vllm_promptcache.store import PIN_OWNER, PinnedModule

STATUS_UTILITY = "prompt_module_status"
STORE_UTILITY = "prompt_module_store"
PIN_UTILITY = "prompt_module_pin"
RESIDENTS_UTILITY = "prompt_module_residents"


@dataclass(frozen=True, slots=True)
class ModuleStatus:
    """A module in an engine.

    Attributes:
        tier: `kv_cache` if it is resident, `host` if it is in host memory, else None: it is on disk
            or has to be encoded.
        pinned: Whether it is kept from eviction.
        num_hits: Requests that found it resident.
        num_encodes: How often it was encoded.
        num_restores: How often it came back from host memory or disk.
        idle_s: Seconds since it was last used, None if it never was.
    """

    tier: str | None = None
    pinned: bool = False
    num_hits: int = 0
    num_encodes: int = 0
    num_restores: int = 0
    idle_s: float | None = None


def prompt_module_status(engine_core: Any, keys: list[bytes]) -> list[tuple[Any, ...]]:
    """Tells the fields of each module's `ModuleStatus`.

    Mutates nothing but the store's memory of modules whose pins expired.
    """
    residency = engine_core.scheduler.residency
    residency.pins.expire()
    return [astuple(_status(residency, key)) for key in keys]


def _status(residency: Any, key: bytes) -> ModuleStatus:
    store = residency.store
    host = "host" if key in residency.tiers.host else None
    tier = host if store.lookup(key) is None else "kv_cache"
    pinned = key in store.held(PIN_OWNER)
    if (history := store.histories.get(key)) is None:
        return ModuleStatus(tier, pinned)
    counts = (history.num_hits, history.num_encodes, history.num_restores)
    return ModuleStatus(tier, pinned, *counts, time.monotonic() - history.last_use)


def prompt_module_store(engine_core: Any) -> dict[str, Any]:
    """Tells the store's counters, and how many blocks and bytes modules have in each tier."""
    scheduler = engine_core.scheduler
    residency = scheduler.residency
    num_blocks = {
        "kv_cache": sum(len(module.blocks) for module in residency.store.modules.values()),
        "host": residency.tiers.host.num_blocks,
    }
    num_bytes = {tier: number * scheduler.block_bytes for tier, number in num_blocks.items()}
    counters: dict[str, Any] = asdict(residency.store.stats)
    return counters | {"num_blocks": num_blocks, "num_bytes": num_bytes}


def prompt_module_residents(
    engine_core: Any, known: list[str]
) -> tuple[str, list[tuple[bytes, int]] | None]:
    """Tells which modules are in the KV cache.

    Args:
        known: Versions that the caller knows, of this engine or others.

    Returns:
        The version as it is now, and key and tokens of each module; None if the version is known.
    """
    store = engine_core.scheduler.residency.store
    version = f"{os.getpid()}-{store.stats.num_commits}-{store.stats.num_evictions}"
    if version in known:
        return version, None
    return version, [(module.key, module.num_tokens) for module in store.modules.values()]


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
