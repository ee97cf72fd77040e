"""A compiled schema: its modules, and how they and the text of a prompt are placed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vllm_promptcache.layout.derived import Derived, DerivedCache
from vllm_promptcache.layout.module_layout import ROOT, ModuleLayout, ancestors
from vllm_promptcache.layout.placement import Placement
from vllm_promptcache.policies import Policy

MAX_NUM_SIBLINGS = 64
"""Keys that a schema names to the engine; see `SchemaLayout.siblings`."""

INLINE_INDEX = 2**40
"""Indexes of modules that are in no schema go on from here, see `layout.inline`."""


@dataclass(frozen=True, slots=True)
class UnionLayout:
    """Modules of which a prompt imports at most one; all start at the same position.

    Attributes:
        parent: Index of the module that holds the union.
        members: Indexes of its members.
        default: The member that is imported with `parent` where a prompt names none.
    """

    parent: int
    members: tuple[int, ...]
    default: int | None


@dataclass(frozen=True, slots=True)
class SchemaLayout:
    """A schema compiled for one tokenizer; immutable.

    Attributes:
        name: The schema's name.
        modules: The root, then all modules in document order.
        primers: What only contexts have, see `layout.primer`; their indexes go on from there.
        firsts: Variants of modules for prompts in which they stand first, see `layout.first`; their
            indexes go on from there.
        unions: All unions in document order.
        children: Modules in the scope of each module, by name, `[num_modules]`.
        by_name: Indexes of all modules of a name, in document order.
        has_roles: Whether the schema uses chat roles.
        private: Whether its modules are shared with nobody who has another salt.
        placement: How it gives positions to its modules, and a prompt to what it imports.
        is_exact: Whether all its prompts are to equal a plain prefill.
        inline: Modules of a prompt that are in no schema, and what these are encoded behind, by
            index.
        scaffolds: Indexes of the modules of each scaffold and of the root, the largest first.
        siblings: Keys of its first `MAX_NUM_SIBLINGS` modules, one behind the other. They travel
            with each request, for the engine to know what else may be asked for.
        fallback: Why it is exact though it says another policy; None where it is as it says.
        derived: What was derived of it, and of its copies for tenants.
    """

    name: str
    modules: tuple[ModuleLayout, ...]
    primers: tuple[ModuleLayout, ...]
    firsts: tuple[ModuleLayout, ...]
    unions: tuple[UnionLayout, ...]
    children: tuple[Mapping[str, int], ...]
    by_name: Mapping[str, Sequence[int]]
    has_roles: bool
    private: bool
    placement: Placement
    is_exact: bool
    scaffolds: tuple[frozenset[int], ...]
    siblings: bytes = field(init=False, repr=False)
    inline: Mapping[int, ModuleLayout] = field(default_factory=dict)
    fallback: str | None = None
    derived: Derived = field(
        default_factory=lambda: DerivedCache().open(), repr=False, compare=False
    )

    def __post_init__(self) -> None:
        keys = [module.key for module in self.modules if module.is_reusable]
        object.__setattr__(self, "siblings", b"".join(keys[:MAX_NUM_SIBLINGS]))

    def with_inline(self, modules: Iterable[ModuleLayout]) -> SchemaLayout:
        """The same schema for a prompt with modules of its own, see `layout.inline`."""
        return replace(self, inline={module.index: module for module in modules})

    @property
    def root(self) -> ModuleLayout:
        """The module that holds the anonymous text."""
        return self.modules[ROOT]

    @property
    def num_indexes(self) -> int:
        """Indexes that modules, primers and variants have, from 0 on."""
        return len(self.modules) + len(self.primers) + len(self.firsts)

    def at(self, index: int) -> ModuleLayout:
        """The module, primer or variant with an index."""
        if index >= INLINE_INDEX:
            return self.inline[index]
        for part in (self.modules, self.primers):
            if index < len(part):
                return part[index]
            index -= len(part)
        return self.firsts[index]

    @property
    def policies(self) -> tuple[Policy, ...]:
        """How its modules are encoded and repaired where prompts are not exact, each way once.

        The root does not count: nothing is before it.
        """
        modules = (module for module in self.modules[1:] if module.is_reusable)
        return tuple(dict.fromkeys(module.policy for module in modules))

    @property
    def num_tokens(self) -> int:
        """Positions that the schema spans, parameters and all members of its unions included."""
        return self.root.end

    @property
    def num_kept_tokens(self) -> int:
        """Tokens whose KV is held if every module is encoded."""
        return sum(module.num_kept_tokens for module in self.modules if module.cached)

    def ancestors(self, module: ModuleLayout) -> list[ModuleLayout]:
        """Modules that `module` is nested in, root first."""
        return ancestors(module, self.modules)

    def descendants(self, module: ModuleLayout) -> tuple[ModuleLayout, ...]:
        """Modules nested in `module`, at any depth, in document order."""
        return self.modules[module.index + 1 : module.last_descendant + 1]
