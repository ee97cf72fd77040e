"""Takes a chat template apart by rendering conversations whose contents are known.

A template is a program. What it puts around a message is read off at the known contents and holds
only if the parts, put together again, give what the template gives; if not, it is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from vllm_promptcache.errors import UnsupportedError
from vllm_promptcache.layout.roles import ChatRoles, RoleWrapper
from vllm_promptcache.pml.ast import RoleName
from vllm_promptcache.pml.diagnostics import shorten

Render: TypeAlias = Callable[[list[dict[str, str]], bool], str]
Message: TypeAlias = tuple[RoleName, str]

# Characters that a template could escape, a second line that it could indent.
_CONTENTS = tuple(f"Probe {number} <b>&amp; 'x'\nSecond {{line}}" for number in "12345")
_MARGIN = " \n "

_CONTEXT = "writes a message differently depending on the messages around it"
_CONTENT = "changes or drops the content of messages"
_WHITE_SPACE = "changes white space within messages or at one end only"
_GENERATION_PROMPT = "asks for the next message differently depending on the conversation"
_REFUSED = "does not render a plain conversation"
_MERGED = "writes system text into the first user message"


class _TemplateError(Exception):
    """The template does not do what was assumed; the text says what it does."""


def derive_roles(render: Render, *, bos: str, eos: str) -> ChatRoles:
    """Takes a chat template apart.

    Args:
        render: Renders messages, with or without the generation prompt.
        bos: Text of the BOS token, empty if there is none.
        eos: Text of the EOS token, empty if there is none.

    Raises:
        UnsupportedError: It is no sequence of wrapped messages; the message names the feature.
    """
    try:
        parts = _read(_Template(render, bos, eos))
    except _TemplateError as error:
        message = f"the model's chat template cannot be used for roles: it {error}"
        hint = "leave out `<system>`, `<user>` and `<assistant>`"
        raise UnsupportedError(message, hint) from error
    return _with_system(parts).chat


def signature(render: Render) -> str:
    """Tells whether a template still writes what it did: conversations, or their refusal.

    Never raises: what the template raises is part of the answer.
    """
    template = _Template(render, "", "")
    texts = []
    for roles in (("user",), ("system", "user", "assistant", "user")):
        try:
            texts.append(template.text(_conversation(*roles), True))
        except _TemplateError as error:
            texts.append(str(error))
    return "\0".join(texts)


@dataclass(frozen=True, slots=True)
class _Template:
    render: Render
    bos: str
    eos: str

    def text(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        conversation = [{"role": role, "content": content} for role, content in messages]
        try:
            return self.render(conversation, add_generation_prompt)
        # Templates raise whatever they like, from jinja2's errors to KeyError.
        except Exception as error:
            raise _TemplateError(f"{_REFUSED} ({shorten(str(error))})") from error

    def gaps(self, *roles: RoleName, add_generation_prompt: bool = False) -> list[str]:
        """Text before, between and behind the messages of a conversation."""
        messages = _conversation(*roles)
        gaps, rest = [], self.text(messages, add_generation_prompt)
        for _, content in messages:
            gap, found, rest = rest.partition(content)
            if not found:
                raise _TemplateError(_CONTENT)
            gaps.append(gap)
        return [*gaps, rest]


@dataclass(frozen=True, slots=True)
class _Parts:
    """What has been read off a template.

    Attributes:
        template: The template.
        bos: BOS at the start of each conversation, empty if the template does not write it.
        ending: Text at the end of a conversation without generation prompt.
        chat: The rest; grows role by role.
    """

    template: _Template
    bos: str
    ending: str
    chat: ChatRoles

    def with_role(self, role: RoleName, prefix: str, suffix: str) -> _Parts:
        wrapper = RoleWrapper(prefix, suffix, strips_content=False)
        return replace(self, chat=_with_wrapper(self.chat, role, wrapper))

    def check(self, *roles: RoleName) -> None:
        """Checks that the parts give what the template gives."""
        messages = _conversation(*roles)
        joined = self._joined(messages)
        if self.template.text(messages) != joined + self.ending:
            raise _TemplateError(_CONTEXT)
        if self.template.text(messages, True) != joined + self.chat.generation_prompt:
            raise _TemplateError(_GENERATION_PROMPT)

    def with_stripping(self, role: RoleName, *roles: RoleName) -> _Parts:
        """Finds out whether the template strips white space from messages of a role.

        Args:
            role: The role.
            roles: A conversation in which it occurs.
        """
        plain = _conversation(*roles)
        padded = [
            (name, f"{_MARGIN}{content}{_MARGIN}" if name == role else content)
            for name, content in plain
        ]
        rendered = self.template.text(padded)
        if rendered == self._joined(padded) + self.ending:
            return self
        if rendered != self._joined(plain) + self.ending:
            raise _TemplateError(_WHITE_SPACE)
        wrapper = replace(self.chat.wrappers[role], strips_content=True)
        return replace(self, chat=_with_wrapper(self.chat, role, wrapper))

    def _joined(self, messages: list[Message]) -> str:
        wrappers = self.chat.wrappers
        wrapped = [
            wrappers[role].prefix + content + wrappers[role].suffix for role, content in messages
        ]
        preamble = "" if messages[0][0] == "system" else self.chat.preamble
        return self.bos + preamble + "".join(wrapped)


def _read(template: _Template) -> _Parts:
    """Reads user and assistant messages."""
    try:
        return _read_messages(template, ending="")
    except _TemplateError:
        # Some templates end a conversation with EOS where no generation prompt follows.
        if not template.gaps("user")[-1].endswith(template.eos or "\0"):
            raise
    return _read_messages(template, ending=template.eos)


def _read_messages(template: _Template, ending: str) -> _Parts:
    head, after_user = template.gaps("user")
    # Not the last message: reasoning models write the assistant's last one in another way.
    _, to_assistant, to_user, _ = template.gaps("user", "assistant", "user")
    *_, after_assistant = template.gaps("user", "assistant")
    *_, request = template.gaps("user", add_generation_prompt=True)
    user_suffix = _without_end(after_user, ending)
    assistant_suffix = _without_end(after_assistant, ending)
    user_prefix = _without_start(to_user, assistant_suffix)
    # A token that begins every message is part of the message (SmolLM2: BOS is <|im_start|>).
    has_bos = head.startswith(template.bos) and not user_prefix.startswith(template.bos)
    bos = template.bos if has_bos else ""
    chat = ChatRoles(
        wrappers={},
        missing={},
        preamble=_without_end(head.removeprefix(bos), user_prefix),
        generation_prompt=_without_start(request, user_suffix),
        starts_with_bos=has_bos,
        system_first_only=False,
    )
    parts = _Parts(template, bos, ending, chat).with_role("user", user_prefix, user_suffix)
    assistant_prefix = _without_start(to_assistant, user_suffix)
    return _checked(parts.with_role("assistant", assistant_prefix, assistant_suffix))


def _checked(parts: _Parts) -> _Parts:
    parts.check("user")
    parts.check("user", "assistant", "user")
    parts.check("user", "assistant", "user", "assistant", "user")
    parts = parts.with_stripping("user", "user")
    return parts.with_stripping("assistant", "user", "assistant", "user")


def _with_system(parts: _Parts) -> _Parts:
    """Reads system messages too, where the template has them as messages of their own."""
    try:
        head, to_user, _ = parts.template.gaps("system", "user")
        prefix = _without_start(head, parts.bos)
        if not to_user.endswith(parts.chat.wrappers["user"].prefix):
            raise _TemplateError(_MERGED)
        suffix = _without_end(to_user, parts.chat.wrappers["user"].prefix)
        parts = parts.with_role("system", prefix, suffix)
        parts.check("system", "user")
        parts.check("system", "user", "assistant", "user")
        parts = parts.with_stripping("system", "system", "user")
    except _TemplateError as error:
        return replace(parts, chat=_without_role(parts.chat, "system", f"it {error}"))
    return replace(parts, chat=replace(parts.chat, system_first_only=not _has_later_system(parts)))


def _has_later_system(parts: _Parts) -> bool:
    try:
        parts.check("user", "assistant", "system", "user")
    except _TemplateError:
        return False
    return True


def _with_wrapper(chat: ChatRoles, role: RoleName, wrapper: RoleWrapper) -> ChatRoles:
    return replace(chat, wrappers={**chat.wrappers, role: wrapper})


def _without_role(chat: ChatRoles, role: RoleName, reason: str) -> ChatRoles:
    wrappers = {name: wrapper for name, wrapper in chat.wrappers.items() if name != role}
    return replace(chat, wrappers=wrappers, missing={role: reason})


def _conversation(*roles: RoleName) -> list[Message]:
    return list(zip(roles, _CONTENTS, strict=False))


def _without_start(text: str, start: str) -> str:
    if not text.startswith(start):
        raise _TemplateError(_CONTEXT)
    return text[len(start) :]


def _without_end(text: str, end: str) -> str:
    if not text.endswith(end):
        raise _TemplateError(_CONTEXT)
    return text[: len(text) - len(end)]
