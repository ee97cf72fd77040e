"""Free order: imports that commute are put into the order in which their schema has them.

Exact modules are shared by prompts that begin alike. Where the author of a schema says that its
modules may come in any order (`order="any"`), prompts with the same modules begin alike, whichever
server plans them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

from vllm_promptcache.pml.ast import Import, PromptNode


def in_document_order(
    children: Sequence[PromptNode], place_of: Callable[[Import], int]
) -> list[PromptNode]:
    """Sorts the first children of a prompt: the imports before any text or role.

    Those that bring new tokens come behind the others, since what is behind new tokens is shared
    with fewer prompts.

    Args:
        children: Of a prompt of a schema with `order="any"`.
        place_of: Looks up where the schema has the module of an import.
    """
    first = [node for node in takewhile(_is_import, children) if isinstance(node, Import)]
    first.sort(key=lambda node: (_is_new(node), place_of(node)))
    return [*first, *children[len(first) :]]


def _is_import(node: PromptNode) -> bool:
    return isinstance(node, Import)


def _is_new(node: PromptNode) -> bool:
    """Whether a node brings tokens that are computed."""
    if not isinstance(node, Import):
        return True
    return bool(node.arguments) or any(map(_is_new, node.children))
