"""Looks up the modules that a prompt names."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_promptcache.errors import PMLError
from vllm_promptcache.layout.module_layout import ModuleLayout
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.pml.ast import Import, Place, Source
from vllm_promptcache.pml.diagnostics import did_you_mean, pml_error, quote

_MAX_NUM_LISTED = 8


def quote_some(names: Sequence[str]) -> str:
    """Quotes names within a message; leaves some out where there are very many."""
    dots = ", ..." if len(names) > _MAX_NUM_LISTED else ""
    return ", ".join(map(quote, names[:_MAX_NUM_LISTED])) + dots


@dataclass(frozen=True, slots=True)
class Names:
    """The names of a schema's modules.

    Attributes:
        layout: The schema.
        source: The prompt, for errors.
    """

    layout: SchemaLayout
    source: Source

    def find(self, element: Import, scope: ModuleLayout) -> ModuleLayout:
        """The module that an import inside of `scope` names.

        It is in that scope or, where there is none, the only one of that name nested in it.

        Raises:
            PMLError: There is no such module, or more than one.
        """
        *around, name = element.name.split("/")
        for outer in around:
            scope = self._named(outer, element.location, scope)
        return self._named(name, element.location, scope)

    def _named(self, name: str, place: Place, scope: ModuleLayout) -> ModuleLayout:
        child = self.layout.children[scope.index].get(name)
        if child is not None:
            return self.layout.modules[child]
        # In document order, so those inside of the scope follow each other.
        named = self.layout.by_name.get(name, ())
        inside = named[
            bisect_right(named, scope.index) : bisect_right(named, scope.last_descendant)
        ]
        found = [self.layout.modules[index] for index in inside]
        if not found:
            raise self._unknown(name, place, scope)
        if len(found) > 1:
            paths = quote_some([module.path for module in found])
            message = f"{quote(name)} is ambiguous: {paths}"
            raise pml_error(self.source, place, message, "spell out the modules around it")
        return found[0]

    def _unknown(self, name: str, place: Place, scope: ModuleLayout) -> PMLError:
        where = quote(scope.path) if scope.path else f"schema {quote(self.layout.name)}"
        message = f"there is no module {quote(name)} in {where}"
        names = dict.fromkeys(module.name for module in self.layout.descendants(scope))
        return pml_error(self.source, place, message, did_you_mean(name, names))
