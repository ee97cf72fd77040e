"""A prompt whose names have been looked up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from vllm_promptcache.layout.content import TextGroup
from vllm_promptcache.layout.module_layout import ModuleLayout, ParameterSlot
from vllm_promptcache.layout.relocation import relocated
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.pml.ast import Argument


@dataclass(frozen=True, slots=True)
class GivenArgument:
    """An argument and the place it is for."""

    module: ModuleLayout
    slot: ParameterSlot
    argument: Argument

    def within(self, module: ModuleLayout) -> GivenArgument:
        """The same argument where the module is at another place."""
        return GivenArgument(module, module.parameters[self.slot.name], self.argument)


@dataclass(frozen=True, slots=True)
class ResolvedPrompt:
    """What a prompt imports and adds.

    Attributes:
        modules: Modules that are imported, also implicitly; the root first, each one behind its
            ancestors, otherwise in the order of the prompt.
        arguments: Arguments of all parameters of `modules`.
        inner: New text before the last import, in document order.
        trailing: New text behind it, in document order.
        has_roles: Whether the prompt or its schema uses chat roles.
    """

    modules: tuple[ModuleLayout, ...]
    arguments: tuple[GivenArgument, ...]
    inner: tuple[TextGroup, ...]
    trailing: tuple[TextGroup, ...]
    has_roles: bool

    @property
    def groups(self) -> tuple[TextGroup, ...]:
        """All new text, in document order."""
        return (*self.inner, *self.trailing)

    def with_modules(self, modules: Iterable[ModuleLayout]) -> ResolvedPrompt:
        """The same prompt with its modules, and so their parameters, at other places."""
        placed = {module.index: module for module in modules}
        arguments = (given.within(placed[given.module.index]) for given in self.arguments)
        return replace(self, modules=tuple(placed.values()), arguments=tuple(arguments))

    def placed(
        self, layout: SchemaLayout, num_tokens: Callable[[TextGroup], int]
    ) -> tuple[ResolvedPrompt, list[int]]:
        """Gives the modules and the inner text their positions.

        Args:
            layout: The prompt's schema.
            num_tokens: Length of a group of new text.

        Returns:
            The prompt with its modules and parameters where they are in it, and where each group
            of `inner` begins.
        """
        texts = [(group, num_tokens(group)) for group in self.inner]
        places = layout.placement.place(self.modules, texts)
        if not places.modules:
            return self, places.starts
        modules = (relocated(layout, m, *places.modules[m.index]) for m in self.modules)
        return self.with_modules(modules), places.starts
