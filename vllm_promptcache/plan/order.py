"""Free order: imports that commute are put into the order that earlier prompts have used.

Exact modules are shared by prompts that begin alike. Where the author of a schema says that its
modules may come in any order (`order="any"`), more prompts can begin alike.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import replace
from itertools import takewhile
from threading import Lock
from typing import TypeAlias

from vllm_promptcache.pml.ast import Import, Prompt, PromptNode

# Beginnings of prompts that are remembered; those not used for longest are forgotten.
MAX_NUM_PREFIXES = 16_384
# Steps of one search: the worst case grows with the factorial of the number of imports.
MAX_NUM_STEPS = 256

_Prefix: TypeAlias = tuple[Hashable, ...]


class RecentOrders:
    """The orders that prompts had lately; may be used from many threads.

    What is resident only the engine knows. What was asked for lately is likely to be.
    """

    def __init__(self) -> None:
        self._prefixes: OrderedDict[_Prefix, None] = OrderedDict()
        self._lock = Lock()

    def arrange(self, prompt: Prompt, root_key: bytes) -> Prompt:
        """Returns a prompt with its first imports in the order that has the longest known prefix.

        Those are the imports before any text, without those that bring new tokens, which come
        behind the others.

        Args:
            prompt: A prompt of a schema with `order="any"`.
            root_key: Key of the schema's root, in which the tenant's salt is.
        """
        first = list(takewhile(lambda node: isinstance(node, Import), prompt.children))
        imports = {_signature(node): node for node in first if not _is_new(node)}
        others = [node for node in first if _is_new(node)]
        with self._lock:
            ordered = self._choose((prompt.schema, root_key), list(imports))
        arranged = [*(imports[signature] for signature in ordered), *others]
        if len(arranged) < len(first):  # One is imported twice, which is refused later.
            return prompt
        return replace(prompt, children=(*arranged, *prompt.children[len(first) :]))

    def _choose(self, start: _Prefix, names: list[Hashable]) -> list[Hashable]:
        """Orders names, and remembers the order."""
        known = max(self._known(start, names), key=len)
        ordered = [*known, *(name for name in names if name not in known)]
        prefix = start
        for name in ordered:
            prefix = (*prefix, name)
            self._prefixes[prefix] = None
            self._prefixes.move_to_end(prefix)
        while len(self._prefixes) > MAX_NUM_PREFIXES:
            self._prefixes.popitem(last=False)
        return ordered

    def _known(self, start: _Prefix, names: list[Hashable]) -> Iterator[_Prefix]:
        """Known ways to begin with some of these names, the empty one first."""
        stack: list[_Prefix] = [()]
        for _ in range(MAX_NUM_STEPS):
            if not stack:
                return
            begun = stack.pop()
            yield begun
            following = (name for name in names if name not in begun)
            stack += [(*begun, n) for n in following if (*start, *begun, n) in self._prefixes]


def _signature(node: PromptNode) -> Hashable:
    """What an import without new tokens imports."""
    assert isinstance(node, Import), "other nodes are new tokens"
    return node.name, tuple(_signature(child) for child in node.children)


def _is_new(node: PromptNode) -> bool:
    """Whether a node brings tokens that are computed."""
    if not isinstance(node, Import):
        return True
    return bool(node.arguments) or any(map(_is_new, node.children))
