"""Layouts of a schema for what a chat and its template put around its modules.

A schema is compiled once, with the wrappers that the chat template writes then. Where a request is
written otherwise (tools or a system message beside it, another date) the schema has another text,
so it is compiled anew for that, and its modules are other ones wherever they can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import Lock

from cachetools import LRUCache

from vllm_promptcache.layout.roles import ChatRoles
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.plan.messages import SystemText, schema_in_messages, with_system
from vllm_promptcache.pml.ast import Schema

# Bytes of layouts that are kept; another one is compiled again when it is used.
MAX_NUM_BYTES = 256 * 2**20
_BYTES_PER_TOKEN = 64
_BYTES_PER_MODULE = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """A schema as it has been laid out.

    Attributes:
        schema: The schema.
        layout: Its layout.
        tokenizer: What it was compiled with, and plans of its prompts are made with.
    """

    schema: Schema
    layout: SchemaLayout
    tokenizer: LayoutTokenizer


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a request puts around a schema's own content.

    Attributes:
        roles: What the template writes around messages.
        is_chat: Whether all content stands in messages.
        system: System text before the schema's own.
    """

    roles: ChatRoles
    is_chat: bool = False
    system: SystemText = field(default_factory=SystemText)


class Variants:
    """Layouts of schemas by what is around them; may be used from many threads.

    Args:
        tokenizer: The model's tokenizer.
        compile_layout: Lays a schema out with a tokenizer.
    """

    def __init__(
        self,
        tokenizer: LayoutTokenizer,
        compile_layout: Callable[[Schema, LayoutTokenizer], SchemaLayout],
    ) -> None:
        self._tokenizer = tokenizer
        self._compile = compile_layout
        self._kept: LRUCache[tuple[Compiled, Surroundings], Compiled]
        self._kept = LRUCache(MAX_NUM_BYTES, getsizeof=_num_bytes)
        self._lock = Lock()

    def of(self, compiled: Compiled, around: Surroundings) -> Compiled:
        """The schema as a request has it; itself where nothing is different.

        Raises:
            PMLError: It does not fit the model, or has a role that the template lacks.
            PlanError: It is to stand in messages, and cannot.
        """
        with self._lock:
            known = self._kept.get((compiled, around))
        if known is None:
            known = self._make(compiled, around)
            if _num_bytes(known) <= MAX_NUM_BYTES:
                with self._lock:
                    self._kept[compiled, around] = known
        return known

    def forget(self, compiled: Compiled) -> None:
        """Lets go of what was made of a schema."""
        with self._lock:
            for key in [key for key in self._kept if key[0] is compiled]:
                del self._kept[key]

    def _make(self, compiled: Compiled, around: Surroundings) -> Compiled:
        tokenizer = self._tokenizer.with_roles(around.roles, is_chat=around.is_chat)
        schema = compiled.schema
        if around.is_chat:
            strips = around.roles.strips("system")
            schema = with_system(schema_in_messages(schema), around.system, strips=strips)
        if schema is compiled.schema and _is_same(compiled, tokenizer):
            return replace(compiled, tokenizer=tokenizer)
        return Compiled(schema, self._compile(schema, tokenizer), tokenizer)


def _is_same(compiled: Compiled, tokenizer: LayoutTokenizer) -> bool:
    """Whether a tokenizer with parts of a template gives a schema the layout that it has."""
    if not compiled.layout.has_roles:
        return True
    own = compiled.tokenizer
    return own.roles == tokenizer.roles and own.chat_start_ids == tokenizer.chat_start_ids


def _num_bytes(compiled: Compiled) -> int:
    layout = compiled.layout
    modules = (*layout.modules, *layout.primers)
    num_tokens = sum(len(module.token_ids) for module in modules)
    return _BYTES_PER_TOKEN * num_tokens + _BYTES_PER_MODULE * len(modules)
