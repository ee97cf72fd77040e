"""The modules of prompts that are in no schema, each laid out once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TypeAlias

from vllm_promptcache.errors import UnsupportedError
from vllm_promptcache.layout.derived import Derived
from vllm_promptcache.layout.inline import InlineModule, schema_of, taken_out
from vllm_promptcache.layout.keys import salted
from vllm_promptcache.layout.module_layout import ModuleLayout
from vllm_promptcache.layout.roles import ChatRoles
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.layout.size import module_bytes
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.pml.ast import Inline, Schema

# Of one with other roles: the primer's tokens, mostly.
_TOKENIZER_BYTES = 20_000

LayOutSchema: TypeAlias = Callable[[Schema, LayoutTokenizer], SchemaLayout]


@dataclass(frozen=True, slots=True)
class InlineModules:
    """Lays out modules that stand in prompts; may be used from many threads.

    Attributes:
        tokenizer: The model's.
        lay_out: Lays out a schema.
        derived: Keeps what was used last.
    """

    tokenizer: LayoutTokenizer
    lay_out: LayOutSchema
    derived: Derived

    def get(self, inline: Inline, tenant: bytes) -> InlineModule:
        """The module of a text, for a tenant; empty for all who say none.

        Raises:
            PMLError: It is longer than the model's context.
        """
        inline, roles = self._in_role(inline)
        digest = sha256(inline.text.encode(errors="surrogatepass")).digest()
        key = ("inline", digest, inline.role, inline.encode, inline.repair, tenant, roles)
        return self.derived.get(key, lambda: self._make(inline, roles, tenant), _own_bytes)

    def _in_role(self, inline: Inline) -> tuple[Inline, ChatRoles | None]:
        """The module in its message, or in none where the template's cannot be known.

        What the template writes before a conversation is no part of it: that may be the date.
        """
        if inline.role is None:
            return inline, None
        try:
            roles = self.tokenizer.now().roles
        except UnsupportedError:
            return replace(inline, role=None), None
        if inline.role not in roles.wrappers:
            return replace(inline, role=None), None
        wrappers = {inline.role: roles.wrappers[inline.role]}
        return inline, replace(roles, wrappers=wrappers, preamble="", generation_prompt="")

    def _make(self, inline: Inline, roles: ChatRoles | None, tenant: bytes) -> InlineModule:
        tokenizer = self.tokenizer if roles is None else self._with_roles(roles)
        layout = self.lay_out(schema_of(inline, private=bool(tenant)), tokenizer)
        made = taken_out(salted(layout, tenant) if tenant else layout)
        return self._sharing(made)

    def _with_roles(self, roles: ChatRoles) -> LayoutTokenizer:
        """One for all modules: it has the primer's tokens."""
        key, make = ("tokenizer", roles), lambda: self.tokenizer.with_roles(roles)
        return self.derived.get(key, make, lambda _: _TOKENIZER_BYTES + roles.num_chars)

    def _sharing(self, made: InlineModule) -> InlineModule:
        """The same module behind contexts that others have as well, which take memory once."""
        key = ("contexts", *(context.key for context in made.contexts))
        return made.behind(self.derived.get(key, lambda: made.contexts, _num_bytes))


def _own_bytes(inline: InlineModule) -> int:
    return module_bytes(inline.module)


def _num_bytes(contexts: Iterable[ModuleLayout]) -> int:
    return sum(map(module_bytes, contexts))
