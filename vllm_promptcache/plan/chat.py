"""A prompt as the first message of a conversation."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vllm_promptcache.layout.roles import ChatRoles
from vllm_promptcache.pml.ast import Prompt, Role, Text


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the model's chat template writes around a first user message.

    Attributes:
        tools: Text before it, with tool definitions; empty where there are none.
        turns: Text behind it: all further messages, then the generation prompt.
    """

    tools: str
    turns: str

    @classmethod
    def of(cls, head: str, tail: str, roles: ChatRoles, bos: str) -> Conversation | None:
        """Reads it off a rendered conversation.

        Args:
            head: Rendered text before the content of the first user message.
            tail: Rendered text behind it.
            roles: The chat template, taken apart.
            bos: Text of the BOS token, empty if there is none.

        Returns:
            None if the template writes the message otherwise than it writes a plain one.
        """
        user = roles.wrappers["user"]
        if not (head.endswith(user.prefix) and tail.startswith(user.suffix)):
            return None
        before = head[: len(head) - len(user.prefix)]
        if roles.starts_with_bos:
            before = before.removeprefix(bos)
        return cls("" if before == roles.preamble else before, tail[len(user.suffix) :])


def close_with_user(prompt: Prompt) -> Prompt:
    """Puts bare text at the end of a prompt into a user message: in a chat all text has a role."""
    children = list(prompt.children)
    text = []
    while children and isinstance(children[-1], Text):
        text.append(children.pop())
    if not text:
        return prompt
    role = Role("user", tuple(reversed(text)), text[-1].location)
    return replace(prompt, children=(*children, role))
