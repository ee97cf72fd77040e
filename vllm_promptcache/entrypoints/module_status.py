"""What the engine says of modules, for each module of a schema.

A module that stands first in some prompts is there twice, see `layout.first`: for users both are
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from vllm_promptcache.core.reports.introspection import ModuleStatus
from vllm_promptcache.layout import SchemaLayout


def keys_by_module(layout: SchemaLayout) -> list[list[bytes]]:
    """For each module of a schema the keys of all that it is encoded as."""
    return [
        [module.key, *(layout.at(index).key for index in (module.first,) if index is not None)]
        for module in layout.modules
    ]


def by_module(layout: SchemaLayout, found: Iterable[ModuleStatus]) -> list[ModuleStatus]:
    """One status for each module of a schema.

    Args:
        layout: The schema.
        found: One for each of its keys, in the order of `keys_by_module`.
    """
    statuses = iter(found)
    return [joined(list(islice(statuses, len(keys)))) for keys in keys_by_module(layout)]


def joined(statuses: Sequence[ModuleStatus]) -> ModuleStatus:
    """One status for several ranks or variants: the nearest tier, the sum of all counts."""
    tiers = {status.tier for status in statuses}
    idle = [status.idle_s for status in statuses if status.idle_s is not None]
    return ModuleStatus(
        tier=next((tier for tier in ("kv_cache", "host") if tier in tiers), None),
        pinned=any(status.pinned for status in statuses),
        num_hits=sum(status.num_hits for status in statuses),
        num_encodes=sum(status.num_encodes for status in statuses),
        num_restores=sum(status.num_restores for status in statuses),
        idle_s=min(idle, default=None),
    )
