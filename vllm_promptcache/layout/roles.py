"""Chat roles: what a model's chat template puts around the messages of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    def __hash__(self) -> int:
        return hash((self.preamble, self.generation_prompt, self.starts_with_bos))

    def strips(self, role: RoleName) -> bool:
        """Whether white space at the ends of such a message is dropped."""
        wrapper = self.wrappers.get(role)
        return wrapper is not None and wrapper.strips_content

    @property
    def num_chars(self) -> int:
        """Length of all its texts."""
        wrappers = self.wrappers.values()
        num_chars = sum(len(wrapper.prefix) + len(wrapper.suffix) for wrapper in wrappers)
        return num_chars + len(self.preamble) + len(self.generation_prompt)

    def behind(self, names: Sequence[RoleName], gaps: Sequence[str], *, bos: str) -> str | None:
        """Reads off a conversation what stands behind its first messages.

        Args:
            names: Roles of these messages, at least one.
            gaps: Text before, between and behind them, `[len(names) + 1]`.
            bos: Text of the BOS token.

        Returns:
            The text behind the last one, or None if they stand in other text than these parts say.
        """
        wrappers = [self.wrappers[name] for name in names]
        text = (bos if self.starts_with_bos else "") + (
            "" if names[0] == "system" else self.preamble
        )
        for wrapper, gap in zip(wrappers, gaps, strict=False):
            if gap != text + wrapper.prefix:
                return None
            text = wrapper.suffix
        return gaps[-1][len(text) :] if gaps[-1].startswith(text) else None

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
