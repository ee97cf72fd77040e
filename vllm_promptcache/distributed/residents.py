"""What a replica tells routers: the names of the modules that its engine holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from vllm_promptcache.distributed.hint import module_key
from vllm_promptcache.entrypoints.engine_modules import EngineModules
from vllm_promptcache.entrypoints.module_status import keys_by_module
from vllm_promptcache.layout import SchemaLayout
from vllm_promptcache.ranking import Summary


@dataclass(slots=True)
class Residents:
    """Follows the modules in the KV caches of a replica's engines.

    Attributes:
        modules: Asks the engines.
    """

    modules: EngineModules
    _tokens: list[dict[bytes, int]] = field(default_factory=list)
    _versions: list[str] = field(default_factory=list)
    _layouts: list[SchemaLayout] = field(default_factory=list)
    # Names of modules and of their schemas, as hints have them, by the modules' keys.
    _names: dict[bytes, tuple[bytes, bytes]] = field(default_factory=dict)
    _summary: Summary = field(default_factory=Summary)

    async def summary(self) -> Summary:
        """What is resident now. Costs little while nothing changes."""
        answers = await self.modules.residents(self._versions)
        layouts = list(self.modules.front_end.planner.schemas.layouts.values())
        has_same = len(layouts) == len(self._layouts) and all(
            new is old for new, old in zip(layouts, self._layouts, strict=True)
        )
        if has_same and all(found is None for _, found in answers):
            return self._summary
        if not has_same:
            self._layouts, self._names = layouts, dict(_names(layouts))
        self._tokens = [
            old if found is None else dict(found)
            for (_, found), old in zip(answers, self._tokens or [{}] * len(answers), strict=True)
        ]
        self._versions = [version for version, _ in answers]
        self._summary = Summary.of(self._named())
        return self._summary

    def _named(self) -> Iterator[tuple[bytes, int]]:
        """Schemas before modules: where the names are too many, they say most."""
        tokens = {key: n for engine in self._tokens for key, n in engine.items()}
        named = [(*self._names[key], tokens[key]) for key in tokens if key in self._names]
        yield from dict.fromkeys(((schema, 0) for schema, _, _ in named))
        yield from ((module, num_tokens) for _, module, num_tokens in named)


def _names(layouts: list[SchemaLayout]) -> Iterator[tuple[bytes, tuple[bytes, bytes]]]:
    for layout in layouts:
        schema = module_key(layout.name, "")
        for module, keys in zip(layout.modules, keys_by_module(layout), strict=True):
            name = module_key(layout.name, module.path.rpartition("/")[2])
            yield from ((key, (schema, name)) for key in keys)
