"""Prints a tree in the form of the golden files: a node a line, indented, with its place."""

from dataclasses import fields, is_dataclass
from typing import Any

from vllm_promptcache.pml import Location, Primer, Source

# Set where a chat is planned; in what was parsed they say nothing.
_UNWRITTEN = ("opens", "closes")


def dump(node: Any, depth: int = 0) -> str:
    names = [field.name for field in fields(node) if field.name not in _UNWRITTEN]
    values = [(name, getattr(node, name)) for name in names]
    # Most have none.
    values = [(name, value) for name, value in values if (name, value) != ("primer", None)]
    scalars = [f"{name}={value!r}" for name, value in values if not _is_structure(value)]
    place = f"{node.location.line}:{node.location.column}"
    head = " ".join([f"{'  ' * depth}{type(node).__name__} {place}", *scalars])
    nested = [dump(child, depth + 1) for _, value in values for child in _nodes(value)]
    return "\n".join([head, *nested])


def _nodes(value: Any) -> list[Any]:
    values = value if isinstance(value, tuple) else (value,) if isinstance(value, Primer) else ()
    return [child for child in values if is_dataclass(child)]


def _is_structure(value: Any) -> bool:
    return isinstance(value, Location | Source) or value == () or bool(_nodes(value))


def without_places(value: Any) -> Any:
    """A tree as nested tuples, to compare two that were read from different documents."""
    if isinstance(value, tuple):
        return tuple(map(without_places, value))
    if not is_dataclass(value):
        return value
    values = (getattr(value, field.name) for field in fields(value))
    kept = (value for value in values if not isinstance(value, Location | Source))
    return (type(value).__name__, *map(without_places, kept))
