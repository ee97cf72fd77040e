"""The module store of an offline engine, as its user sees it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from vllm_promptcache.compat.engine_core import call_utility
from vllm_promptcache.core.reports.introspection import STATUS_UTILITY, STORE_UTILITY, ModuleStatus
from vllm_promptcache.entrypoints.front_end import FrontEnd
from vllm_promptcache.entrypoints.module_status import by_module, keys_by_module
from vllm_promptcache.entrypoints.schema_info import SchemaInfo
from vllm_promptcache.layout import SchemaLayout


@dataclass(frozen=True, slots=True)
class ModuleStoreView:
    """Looks into the engine's module store; changes nothing.

    Attributes:
        client: vLLM's client of the engine core.
        front_end: Knows the schemas.
    """

    client: Any
    front_end: FrontEnd

    def stats(self) -> dict[str, Any]:
        """Counters of the store, and for each schema its modules.

        Returns:
            Counters since the engine started; `num_blocks` and `num_bytes` of modules in each tier;
            and under `schemas`, for each module of a schema, what `ModuleInfo` and `ModuleStatus`
            say. Modules of private schemas are those of tenants, and are only counted.
        """
        counters: dict[str, Any] = call_utility(self.client, STORE_UTILITY)
        layouts = self.front_end.planner.schemas.layouts.values()
        return counters | {"schemas": {layout.name: self._modules(layout) for layout in layouts}}

    def _modules(self, layout: SchemaLayout) -> list[dict[str, Any]]:
        info = SchemaInfo.of(layout, self.front_end.block_size)
        if layout.private:
            return []
        keys = list(chain.from_iterable(keys_by_module(layout)))
        found = call_utility(self.client, STATUS_UTILITY, keys)
        statuses = by_module(layout, (ModuleStatus(*status) for status in found))
        return [
            asdict(module) | asdict(status)
            for module, status in zip(info.modules, statuses, strict=True)
        ]
