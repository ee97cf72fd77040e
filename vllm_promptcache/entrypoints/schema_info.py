"""What users are told of a schema."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_promptcache.layout import SchemaLayout

# The object and its numbers; the path is the layout's.
_MODULE_BYTES = 200


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """A module of a compiled schema.

    Attributes:
        path: Names from the outermost module on, joined by `/`; empty for the schema's root.
        num_tokens: Its own tokens whose KV is kept (without placeholders and nested modules).
        start: Position id at which it begins.
        num_blocks: KV cache blocks it takes while it is resident.
    """

    path: str
    num_tokens: int
    start: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class SchemaInfo:
    """A compiled schema.

    Attributes:
        name: Its name.
        num_tokens: Positions it spans.
        policy: How its modules are reused; several ways stand between commas.
        reason: Why it is exact though it says another policy.
        modules: Its modules in document order, the root first.
    """

    name: str
    num_tokens: int
    policy: str
    reason: str | None
    modules: tuple[ModuleInfo, ...]

    @classmethod
    def of(cls, layout: SchemaLayout, block_size: int) -> SchemaInfo:
        """Summarizes a layout for an engine with blocks of `block_size` tokens."""
        modules = tuple(
            ModuleInfo(m.path, m.num_kept_tokens, m.start, -(-m.num_kept_tokens // block_size))
            for m in layout.modules
        )
        return cls(layout.name, layout.num_tokens, _policy(layout), layout.fallback, modules)


def _policy(layout: SchemaLayout) -> str:
    if layout.is_exact:
        return "exact"
    # A schema without modules has its own text only, which is encoded alone.
    return ", ".join(map(str, layout.policies)) or "isolated"


def info_bytes(info: SchemaInfo) -> int:
    """Bytes of memory that it takes, about."""
    return _MODULE_BYTES * (1 + len(info.modules))
