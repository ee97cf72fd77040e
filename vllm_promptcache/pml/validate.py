"""Rules of a schema that need more than one element to check."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from vllm_promptcache.errors import PMLError
from vllm_promptcache.pml.ast import (
    Location,
    Module,
    Param,
    Place,
    Role,
    Scaffold,
    Schema,
    SchemaNode,
    Source,
    Union,
    modules_in_scope,
    own_params,
)
from vllm_promptcache.pml.diagnostics import did_you_mean, pml_error, quote

# A tree of names, since a list of whole paths would grow with the square of their length.
_Scope: TypeAlias = Mapping[str, "_Scope"]


def validate_schema(schema: Schema) -> None:
    """Checks names, unions, parameters, roles and scaffolds of a schema.

    Raises:
        PMLError: A rule is broken.
    """
    validator = _Validator(schema.source)
    validator.nodes(schema.children, in_module=False, in_role=False)
    scope = validator.scope(schema.children)
    for scaffold in schema.scaffolds:
        validator.scaffold(scaffold, scope)


@dataclass(frozen=True, slots=True)
class _Validator:
    source: Source

    def nodes(self, nodes: Iterable[SchemaNode], in_module: bool, in_role: bool) -> None:
        for node in nodes:
            match node:
                case Module():
                    self._module(node, in_role)
                case Union():
                    self._union(node, in_role)
                case Param() if not in_module:
                    message = f"parameter {quote(node.name)} is outside of a module"
                    raise self._error(node.location, message, "put it inside a module")
                case Role():
                    if in_role:
                        message = f"role `<{node.role}>` inside a role"
                        hint = "close the outer role first"
                        raise self._error(node.location, message, hint)
                    self.nodes(node.children, in_module, in_role=True)

    def scope(self, nodes: Iterable[SchemaNode]) -> _Scope:
        """Modules by name, level by level."""
        first: dict[str, Location] = {}
        scope: dict[str, _Scope] = {}
        for module in modules_in_scope(nodes):
            self._unique(module, first, "module")
            scope[module.name] = self.scope(module.children)
        return scope

    def scaffold(self, scaffold: Scaffold, scope: _Scope) -> None:
        if len(scaffold.paths) < 2:
            message, hint = "a scaffold needs at least two modules", "list their paths in `modules`"
            raise self._error(scaffold.location, message, hint)
        seen = set()
        for path in scaffold.paths:
            self._path(path, scope, scaffold.location)
            if path in seen:
                message = f"the scaffold names {quote(path)} twice"
                raise self._error(scaffold.location, message, "leave one out")
            seen.add(path)

    def _path(self, path: str, scope: _Scope, location: Location) -> None:
        for name in path.split("/"):
            if name not in scope:
                message = f"the scaffold names {quote(path)}, but there is no module {quote(name)}"
                raise self._error(location, message, did_you_mean(name, scope))
            scope = scope[name]

    def _module(self, module: Module, in_role: bool) -> None:
        first: dict[str, Location] = {}
        for param in own_params(module.children):
            self._unique(param, first, "parameter")
        self.nodes(module.children, in_module=True, in_role=in_role)

    def _union(self, union: Union, in_role: bool) -> None:
        names = [member.name for member in union.members]
        if not names:
            raise self._error(union.location, "a union without a module", "put one into it")
        if union.default is not None and union.default not in names:
            message = f"the union's default {quote(union.default)} is not one of its modules"
            raise self._error(union.location, message, did_you_mean(union.default, names))
        for member in union.members:
            self._module(member, in_role)

    def _unique(self, node: Module | Param, first: dict[str, Location], what: str) -> None:
        if before := first.get(node.name):
            message = f"{what} {quote(node.name)} is defined twice"
            hint = f"rename it; the first one is at {before.line}:{before.column}"
            raise self._error(node.location, message, hint)
        first[node.name] = node.location

    def _error(self, location: Place, message: str, hint: str | None) -> PMLError:
        return pml_error(self.source, location, message, hint)
