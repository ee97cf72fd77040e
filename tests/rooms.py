"""Which rooms the package has, and what each of them may import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = "vllm_promptcache"
ROOT = Path(__file__).parents[1] / PACKAGE

# From the ground up: a room names only rooms above it in this table. A room is a file or a folder,
# without the folders in it that are rooms of their own.
ROOMS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "log": (),
    "tracing": (),
    "cpu_types": (),
    "policies": (),
    "compat": ("errors",),
    # The front end: neither torch nor vllm.
    "sequence": ("errors",),
    "ranking": (),
    "pml": ("errors", "policies"),
    "layout": ("errors", "pml", "policies", "sequence"),
    "plan": ("errors", "layout", "pml", "policies", "sequence"),
    "config": ("errors", "policies"),
    # What servers need of a model's profile; the commands are on top.
    "quality": ("config", "errors", "layout", "policies"),
    # What scheduler and workers share.
    "store": ("compat", "errors"),
    "steps": ("sequence", "store"),
    # The scheduler's half and the workers' half: neither knows the other.
    "core": ("compat", "config", "errors", "log", "sequence", "steps", "store", "tracing"),
    "kernels": (),
    "worker": ("compat", "config", "errors", "kernels", "log", "sequence", "steps", "store"),
    "connector": ("compat", "core", "steps", "worker"),
    "entrypoints": (
        "compat",
        "config",
        "core",
        "errors",
        "layout",
        "log",
        "plan",
        "pml",
        "policies",
        "quality",
        "ranking",
        "sequence",
        "tracing",
    ),
    # What vLLM loads, and `LLM`.
    "engine": ("compat", "config", "connector", "cpu_types", "errors", "log", "quality"),
    "plugin": ("compat", "config", "engine", "entrypoints", "errors"),
    "llm": ("compat", "config", "core", "entrypoints", "errors", "plan", "plugin", "pml"),
    PACKAGE: ("llm",),
    # On top: quality tools, the command line, examples.
    "models": ("cpu_types", "errors"),
    "quality.evaluate": (
        PACKAGE,
        "entrypoints",
        "errors",
        "models",
        "plan",
        "policies",
        "quality",
    ),
    "quality.calibrate": ("errors", "models", "policies", "quality", "quality.evaluate"),
    "examples": (PACKAGE, "entrypoints", "models", "plan"),
    "distributed": (
        "compat",
        "entrypoints",
        "errors",
        "layout",
        "log",
        "pml",
        "ranking",
    ),
    "selftest": (PACKAGE, "kernels", "layout", "models", "quality.evaluate"),
}


@dataclass(frozen=True, slots=True)
class Import:
    """An import somewhere in a file: at its top, in a function, or for a type checker only.

    Attributes:
        line: Its line.
        name: The full name of what is imported, of which the last part may be no module.
    """

    line: int
    name: str


@dataclass(frozen=True)
class Module:
    """A file of the package.

    Attributes:
        path: Below the package's folder.
        tree: What is in it.
    """

    path: Path
    tree: ast.Module

    @property
    def name(self) -> str:
        """As it is imported."""
        parts = self.path.with_suffix("").parts
        return ".".join((PACKAGE, *parts[: -1 if parts[-1] == "__init__" else None]))

    @property
    def room(self) -> str:
        """The room it is in."""
        return room_of(self.name)

    @cached_property
    def imports(self) -> list[Import]:
        """All imports in it."""
        return [Import(line, name) for line, name in self._imports()]

    def _imports(self) -> Iterator[tuple[int, str]]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                source = f"{self._around(node.level)}{node.module or ''}".rstrip(".")
                yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)

    def _around(self, level: int) -> str:
        """What a relative import starts at."""
        folders = (PACKAGE, *self.path.parent.parts)
        return "".join(f"{folder}." for folder in folders[: len(folders) + 1 - level] if level)


def modules(root: Path = ROOT) -> list[Module]:
    """All files of a package."""
    # Where kernels are in a checkout is a link, which is not followed.
    folders = [root, *(path for path in root.iterdir() if path.is_symlink())]
    paths = sorted({path for folder in folders for path in folder.rglob("*.py")})
    return [Module(path.relative_to(root), ast.parse(path.read_text())) for path in paths]


def room_of(name: str) -> str:
    """The room of a module of the package: the innermost one that the table has."""
    path = name.removeprefix(f"{PACKAGE}.")
    while path and path not in ROOMS:
        path = path.rpartition(".")[0]
    return path or PACKAGE


def reach(room: str) -> set[str]:
    """All rooms that importing a room may load."""
    return {room}.union(*map(reach, ROOMS[room]))


def faults(found: list[Module]) -> list[str]:
    """Imports that the table does not allow, each with its place and the rule it breaks."""
    return [
        f"{PACKAGE}/{module.path}:{one.line}: {rule}"
        for module in found
        for one in module.imports
        if one.name.startswith(f"{PACKAGE}.")
        if (rule := _broken(module.room, room_of(one.name))) is not None
    ]


def _broken(room: str, other: str) -> str | None:
    if other == room or other in ROOMS[room]:
        return None
    order = list(ROOMS)
    if order.index(other) > order.index(room):
        return f"imports run one way, and `{other}` stands above `{room}`"
    return f"`{room}` may import {', '.join(ROOMS[room]) or 'no other room'}, not `{other}`"


def circle(found: list[Module]) -> list[str]:
    """Names of files that import each other in a circle, the first one found; empty without any."""
    names = {module.name for module in found}
    imports = {
        module.name: {target for one in module.imports if (target := _target(one.name, names))}
        for module in found
    }
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(imports[name] - {name}):
            if closed := follow(other, [*way, name]):
                return closed
        done.add(name)
        return []

    return next(filter(None, (follow(name, []) for name in sorted(names))), [])


def _target(name: str, names: set[str]) -> str | None:
    """The file that an import reads: the name itself, or what stands before its last dot."""
    return next((path for path in (name, name.rpartition(".")[0]) if path in names), None)
