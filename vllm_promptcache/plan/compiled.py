"""Schemas as they are laid out, for what a request puts around their modules.

A schema is compiled once, with the wrappers that the chat template writes then. Where a request is
written otherwise (tools or a system message beside it, another date) the schema has another text,
so it is compiled anew for that, and its modules are other ones wherever they can tell. So they are
for each tenant of a private schema.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Protocol

from vllm_promptcache.errors import ClientError
from vllm_promptcache.layout.compiler import compile_schema
from vllm_promptcache.layout.content import roles_in
from vllm_promptcache.layout.derived import Derived
from vllm_promptcache.layout.keys import salted
from vllm_promptcache.layout.roles import ChatRoles
from vllm_promptcache.layout.schema_layout import SchemaLayout
from vllm_promptcache.layout.size import salted_bytes, schema_bytes
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.plan.messages import SystemText, schema_in_messages, with_system
from vllm_promptcache.pml.ast import Prompt, Role, Schema
from vllm_promptcache.pml.diagnostics import quote
from vllm_promptcache.policies import Policy, Repair


class Gate(Protocol):
    """Says which policies may be used, by what was measured of them."""

    def apply(self, layout: SchemaLayout) -> SchemaLayout:
        """Returns a schema as it is, or exact if what it says must not be served."""

    def is_within(self, layout: SchemaLayout, repair: Repair | None, max_kl: float) -> bool:
        """Whether all that a schema says was measured to be within a KL, in nats.

        Args:
            layout: The schema.
            repair: What a prompt says instead of its modules.
            max_kl: What the prompt allows.
        """


def tenant_of(salt: str | None) -> bytes:
    """Tells tenants apart by their salt; empty without one."""
    # A digest, since a salt may be of any length and stays in memory.
    return sha256(salt.encode(errors="surrogatepass")).digest() if salt else b""


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

    def tenant(self, salt: str | None) -> bytes:
        """Tells tenants apart, empty where they share modules.

        Args:
            salt: The tenant's salt.

        Raises:
            ClientError: The schema is private and there is no salt.
        """
        if not self.layout.private:
            return b""
        if not salt:
            message = f"schema {quote(self.layout.name)} is private: a request must have a salt"
            raise ClientError(message, "set `cache_salt` to a secret of the tenant")
        return tenant_of(salt)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a request puts around a schema's own content.

    Attributes:
        roles: What the template writes around messages; None for what the schema was compiled with.
        is_chat: Whether all content stands in messages.
        system: System text before the schema's own.
        tenant: Whose modules they are, see `Compiled.tenant`.
    """

    roles: ChatRoles | None = None
    is_chat: bool = False
    system: SystemText = field(default_factory=SystemText)
    tenant: bytes = b""


@dataclass(frozen=True, slots=True)
class SchemaCompiler:
    """Lays schemas out for one model; may be used from many threads.

    Attributes:
        tokenizer: The model's tokenizer.
        max_model_len: Positions the model has.
        policy: Policy of schemas that do not say their own.
        gate: Is asked when a schema is compiled; None lets all pass, and has measured nothing.
    """

    tokenizer: LayoutTokenizer
    max_model_len: int
    policy: Policy
    gate: Gate | None = None

    def compile(self, schema: Schema, derived: Derived) -> Compiled:
        """Lays out a schema as the chat template writes it now.

        Args:
            schema: The schema.
            derived: Where its variants are kept.

        Raises:
            PMLError: The schema cannot be laid out.
            UnsupportedError: It uses roles, and the chat template cannot be taken apart.
        """
        has_roles = next(roles_in(schema.children), None) is not None
        tokenizer = self.tokenizer.now() if has_roles else self.tokenizer
        return self.lay_out(schema, tokenizer, derived)

    def for_text(self, compiled: Compiled, prompt: Prompt | None, tenant: bytes) -> Compiled:
        """A schema for a prompt that stands in no conversation, as the template writes it now.

        Args:
            compiled: The schema.
            prompt: The prompt; None for one without text.
            tenant: Whose prompt it is.

        Raises:
            PMLError: The schema does not fit the model any more.
            UnsupportedError: There are roles, and the chat template cannot be taken apart.
        """
        own, found = compiled.tokenizer, compiled
        has_roles, children = compiled.layout.has_roles, prompt.children if prompt else ()
        now = own
        if has_roles or next(roles_in(children), None) is not None:
            now = self.tokenizer.now()
        is_other = has_roles and now is not own and now.roles != own.roles
        if tenant or is_other:
            around = Surroundings(now.roles if is_other else None, tenant=tenant)
            found = self.variant(compiled, around)
        return found if found.tokenizer is now else replace(found, tokenizer=now)

    def beginning(self, prompt: Prompt) -> tuple[str, LayoutTokenizer]:
        """What the template writes before a prompt that names no schema, and a tokenizer for it.

        Raises:
            UnsupportedError: The prompt uses roles, and the chat template cannot be taken apart.
        """
        if next(roles_in(prompt.children), None) is None:
            return "", self.tokenizer
        tokenizer = self.tokenizer.now()
        first, roles = prompt.children[0], tokenizer.roles
        if not isinstance(first, Role):
            return "", tokenizer
        start = tokenizer.bos_text if roles.starts_with_bos else ""
        return start + ("" if first.role == "system" else roles.preamble), tokenizer

    def allowed(self, prompt: Prompt, layout: SchemaLayout) -> Prompt:
        """Returns a prompt as it is, or exact if its schema's policies are not within its KL."""
        if prompt.max_kl is None:
            return prompt
        gate = self.gate
        if gate is not None and gate.is_within(layout, prompt.repair, prompt.max_kl):
            return prompt
        return replace(prompt, is_exact=True)

    def variant(self, compiled: Compiled, around: Surroundings) -> Compiled:
        """The schema as a request has it.

        Raises:
            PMLError: It does not fit the model, or has a role that the template lacks.
            PlanError: It is to stand in messages, and cannot.
        """
        return compiled.layout.derived.get(
            around,
            lambda: self._make(compiled, around),
            lambda made: _num_bytes(compiled, around, made),
        )

    def _make(self, compiled: Compiled, around: Surroundings) -> Compiled:
        if around.tenant:
            of_all = replace(around, tenant=b"")
            shared = compiled if of_all == Surroundings() else self.variant(compiled, of_all)
            return replace(shared, layout=salted(shared.layout, around.tenant))
        assert around.roles is not None, "the template writes it otherwise"
        tokenizer = self.tokenizer.with_roles(around.roles, is_chat=around.is_chat)
        schema = compiled.schema
        if around.is_chat:
            strips = around.roles.strips("system")
            schema = with_system(schema_in_messages(schema), around.system, strips=strips)
        if schema is compiled.schema and _is_same(compiled, tokenizer):
            return replace(compiled, tokenizer=tokenizer)
        return self.lay_out(schema, tokenizer, compiled.layout.derived.part())

    def lay_out(self, schema: Schema, tokenizer: LayoutTokenizer, derived: Derived) -> Compiled:
        """Lays out a schema with a tokenizer that knows the parts of the template.

        Raises:
            PMLError: The schema cannot be laid out.
        """
        layout = compile_schema(
            schema,
            tokenizer,
            default_policy=self.policy,
            max_model_len=self.max_model_len,
        )
        if self.gate is not None:
            layout = self.gate.apply(layout)
        return Compiled(schema, replace(layout, derived=derived), tokenizer)


def _num_bytes(compiled: Compiled, around: Surroundings, made: Compiled) -> int:
    if around.tenant:
        return salted_bytes(made.layout)
    return _SAME_BYTES if made.layout is compiled.layout else made.num_bytes


def _is_same(compiled: Compiled, tokenizer: LayoutTokenizer) -> bool:
    """Whether a tokenizer with parts of a template gives a schema the layout that it has."""
    if not compiled.layout.has_roles:
        return True
    own = compiled.tokenizer
    return own.roles == tokenizer.roles and own.chat_start_ids == tokenizer.chat_start_ids
