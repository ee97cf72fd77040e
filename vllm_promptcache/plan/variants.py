"""Layouts of a schema for what a chat and its template put around its modules.

A schema is compiled once, with the wrappers that the chat template writes then. Where a request is
written otherwise (tools or a system message beside it, another date) the schema has another text,
so it is compiled anew for that, and its modules are other ones wherever they can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from vllm_promptcache.layout.roles import ChatRoles
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.layout.size import schema_bytes
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.plan.messages import SystemText, schema_in_messages, with_system
from vllm_promptcache.pml.ast import Schema

# Of a variant that has the layout of its schema.
_SAME_BYTES = 1000


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

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that it takes, but for the tokenizer."""
        return schema_bytes(self.schema, self.layout)


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

    def of(self, compiled: Compiled, around: Surroundings) -> Compiled:
        """The schema as a request has it; itself where nothing is different.

        Raises:
            PMLError: It does not fit the model, or has a role that the template lacks.
            PlanError: It is to stand in messages, and cannot.
        """
        return compiled.layout.derived.get(
            around,
            lambda: self._make(compiled, around),
            lambda made: _SAME_BYTES if made.layout is compiled.layout else made.num_bytes,
        )

    def _make(self, compiled: Compiled, around: Surroundings) -> Compiled:
        tokenizer = self._tokenizer.with_roles(around.roles, is_chat=around.is_chat)
        schema = compiled.schema
        if around.is_chat:
            strips = around.roles.strips("system")
            schema = with_system(schema_in_messages(schema), around.system, strips=strips)
        if schema is compiled.schema and _is_same(compiled, tokenizer):
            return replace(compiled, tokenizer=tokenizer)
        layout = self._compile(schema, tokenizer)
        return Compiled(schema, replace(layout, derived=compiled.layout.derived.part()), tokenizer)


def _is_same(compiled: Compiled, tokenizer: LayoutTokenizer) -> bool:
    """Whether a tokenizer with parts of a template gives a schema the layout that it has."""
    if not compiled.layout.has_roles:
        return True
    own = compiled.tokenizer
    return own.roles == tokenizer.roles and own.chat_start_ids == tokenizer.chat_start_ids
