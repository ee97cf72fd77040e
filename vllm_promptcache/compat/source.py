"""What a vLLM that is not imported has: its source, read by `ast`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from vllm_promptcache.compat.definition import Definition

_Names = dict[str, ast.AST]


@dataclass(frozen=True)
class Source:
    """The modules of a source tree, or of an unpacked wheel.

    Attributes:
        root: The folder that holds the package `vllm`.
    """

    root: Path
    _modules: dict[str, _Names] = field(default_factory=dict, repr=False)

    @classmethod
    def installed(cls) -> Source:
        """That of the vLLM which `import vllm` would find."""
        spec = find_spec("vllm")
        assert spec is not None, "vLLM is a requirement"
        assert spec.origin is not None, "vLLM is a package with an __init__"
        return cls(Path(spec.origin).parents[1])

    @property
    def version(self) -> str:
        """Its version, or its folder where none is written down."""
        path = self.root / "vllm" / "_version.py"
        text = path.read_text() if path.is_file() else ""
        found = re.search(r"^__version__ = .*'(.+)'$", text, re.MULTILINE)
        return found[1] if found else str(self.root)

    def find(self, owner: str, path: str) -> Definition | None:
        """Finds a name of a module or class, or an attribute of its instances.

        Args:
            owner: A module, or `module:Class`; an object of a module stands for its class.
            path: A name; behind a dot, an attribute of what the source says it is.
        """
        module, _, class_name = owner.partition(":")
        name, *attributes = path.split(".")
        if class_name:
            found = self._member(self._class_of(self._global(module, class_name)), name)
        else:
            found = self._global(module, name)
        for attribute in attributes:
            found = self._member(self._class_of(found), attribute)
        return found

    def _global(self, module: str, name: str) -> Definition | None:
        """A name of a module, from where it is defined."""
        node = self._names_of(module).get(name)
        if isinstance(node, ast.ImportFrom):
            return self._global(self._absolute(module, node), node.names[0].name)
        return None if node is None else Definition(module, node)

    def _names_of(self, module: str) -> _Names:
        if module not in self._modules:
            path = self._path(module)
            body = ast.parse(path.read_bytes()).body if path.is_file() else []
            self._modules[module] = _defined(body)
        return self._modules[module]

    def _path(self, module: str) -> Path:
        path = self.root.joinpath(*module.split("."))
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        parts = [*module.split("."), *(["__init__"] * (self._path(module).stem == "__init__"))]
        package = parts[: -node.level] if node.level else []
        return ".".join([*package, *([node.module] if node.module else [])])

    def _member(self, cls: Definition | None, name: str) -> Definition | None:
        """A name of a class, of its instances or of its bases."""
        if cls is None or not isinstance(cls.node, ast.ClassDef):
            return None
        own = _defined(cls.node.body)
        if node := own.get(name) or _assigned(own.get("__init__"), cls.node).get(name):
            return Definition(cls.module, node, cls.node)
        bases = (self._class_named(base, cls) for base in cls.node.bases)
        return next((found for base in bases if (found := self._member(base, name))), None)

    def _class_of(self, found: Definition | None) -> Definition | None:
        """The class of what a name stands for, as far as the source says it; of a class, itself."""
        if found is None:
            return None
        match found.node:
            case ast.ClassDef():
                return found
            case ast.FunctionDef(returns=said) | ast.AnnAssign(annotation=said):
                return self._class_named(said, found)
            case ast.Assign(value=said) | ast.arg(annotation=said):
                return self._class_named(said, found)
        return None

    def _class_named(self, said: ast.AST | None, at: Definition) -> Definition | None:
        """The class that an annotation names, or that an expression gives an instance of."""
        match said:
            case ast.Constant(value=str() as text):
                return self._class_named(ast.parse(text, mode="eval").body, at)
            case ast.BinOp(left=part) | ast.Subscript(value=part) | ast.Call(func=part):
                return self._class_named(part, at)
            case ast.Attribute(value=ast.Name(id="self"), attr=name) if at.owner:
                return self._class_of(self._member(Definition(at.module, at.owner), name))
            case ast.Name(id=name):
                argument = _arguments(at.owner).get(name)
                known = Definition(at.module, argument) if argument else None
                return self._class_of(known or self._global(at.module, name))
        return None


def _defined(body: Iterable[ast.AST]) -> _Names:
    """The names that statements define; in branches too, where the first one counts."""
    names: _Names = {}
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names[node.name] = node
            case ast.Assign():
                names |= {
                    target.id: node for target in node.targets if isinstance(target, ast.Name)
                }
            case ast.AnnAssign(target=ast.Name(id=name)):
                names[name] = node
            case ast.ImportFrom():
                for alias in node.names:
                    names[alias.asname or alias.name] = ast.ImportFrom(
                        node.module, [alias], node.level
                    )
            case ast.If() | ast.Try():
                handlers = node.handlers if isinstance(node, ast.Try) else []
                others = (part for handler in handlers for part in handler.body)
                names = _defined([*others, *node.orelse]) | _defined(node.body) | names
    return names


def _assigned(*scopes: ast.AST | None) -> _Names:
    """The attributes of `self` that are set somewhere in the scopes; the first of each counts."""
    names: _Names = {}
    for node in (node for scope in scopes if scope for node in ast.walk(scope)):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for part in (part for target in targets if target for part in ast.walk(target)):
            match part:
                case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                    names.setdefault(name, node)
    return names


def _arguments(cls: ast.ClassDef | None) -> _Names:
    """The arguments of a class's `__init__`."""
    init = _defined(cls.body).get("__init__") if cls else None
    return {arg.arg: arg for arg in init.args.args} if isinstance(init, ast.FunctionDef) else {}
