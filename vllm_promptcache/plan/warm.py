"""Plans that make the engine encode modules ahead of the prompts that import them."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.plan.chain import Chain
from vllm_promptcache.plan.parts import PlannedModule
from vllm_promptcache.plan.prompt_plan import PromptPlan, make_plan


def warm_plans(layout: SchemaLayout, *, block_size: int) -> Iterator[PromptPlan]:
    """Short sequences that make the engine encode every module and scaffold of a schema.

    Each reads one module, or one scaffold, but for its last token, which is computed again; its
    other `modules` are the contexts. A module of one token has nothing to read ahead and is left to
    its first prompt. So is all of an exact schema, whose modules are other ones in every
    combination, and scaffolds of a compact one, which may be anywhere.
    """
    if layout.is_exact:
        return
    for module in _modules(layout):
        yield _plan(layout, module, block_size)
    for scaffold in _scaffolds(layout, block_size):
        yield _plan(layout, scaffold, block_size)


def _modules(layout: SchemaLayout) -> Iterator[list[PlannedModule]]:
    """Each module behind its contexts."""
    for module in layout.modules:
        if module.is_reusable and module.num_kept_tokens > 1:
            contexts = [PlannedModule(layout.at(index), ()) for index in module.dependencies]
            yield [*contexts, PlannedModule.first(module, module.num_kept_tokens)]


def _scaffolds(layout: SchemaLayout, block_size: int) -> Iterator[list[PlannedModule]]:
    for scaffold in layout.placement.known_ahead(layout.scaffolds):
        members = (layout.modules[index] for index in sorted(scaffold))
        chain = Chain.of(layout, members, "scaffold", block_size=block_size).modules
        if chain:
            yield [PlannedModule.first(module, module.num_kept_tokens) for module in chain]


def _plan(layout: SchemaLayout, modules: list[PlannedModule], block_size: int) -> PromptPlan:
    *others, last = modules
    shortened = PlannedModule.first(last.layout, last.num_tokens - 1)
    new = shortened.computed_again()
    modules = [*others, shortened]
    return make_plan(layout, modules, new, block_size=block_size, is_warming=True)
