"""Chat roles: what a model's chat template puts around the messages of a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_promptcache.pml.ast import Role, RoleName, Source
from vllm_promptcache.pml.diagnostics import pml_error


@dataclass(frozen=True, slots=True)
class RoleWrapper:
    """Text around a message of one role.

    Attributes:
        prefix: Text before the message.
        suffix: Text behind it.
        strips_content: Whether white space at the ends of the message is dropped.
    """

    prefix: str
    suffix: str
    strips_content: bool


@dataclass(frozen=True, slots=True)
class ChatRoles:
    """A chat template taken apart (paper, section 3.2: PML's roles stand for any template).

    Attributes:
        wrappers: Text around messages, by role; roles that the template cannot do are missing.
        missing: Why a role is missing from `wrappers`.
        preamble: Text before a first message that is not a system message: a default system
            message in many templates.
        generation_prompt: Text that asks for the assistant's next message.
        starts_with_bos: Whether the template begins a conversation with the BOS token.
        system_first_only: Whether a system message is special at the start of a conversation or
            may not stand elsewhere.
    """

    wrappers: Mapping[RoleName, RoleWrapper]
    missing: Mapping[RoleName, str]
    preamble: str
    generation_prompt: str
    starts_with_bos: bool
    system_first_only: bool

    def check(self, role: Role[Any], source: Source, *, is_first: bool) -> None:
        """Checks that the template has a role at a place.

        Args:
            role: The element.
            source: The document it stands in.
            is_first: Whether no role stands before it.

        Raises:
            PMLError: The template has no such role, or not there.
        """
        name = role.role
        if name in self.missing:
            message = f"the model's chat template has no `<{name}>` role: {self.missing[name]}"
            raise pml_error(source, role.location, message, "put the text into a `<user>` element")
        if name == "system" and self.system_first_only and not is_first:
            message = "the model's chat template has `<system>` only as the first role"
            raise pml_error(source, role.location, message, "put it before all other roles")
