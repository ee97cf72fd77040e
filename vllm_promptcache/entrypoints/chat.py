"""PML in a conversation: a text of its first user message may be a PML prompt.

The model's own chat template renders the conversation with probes in place of the messages that the
document holds; what it writes around them (tools, further turns, the generation prompt) is text of
the plan.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, TypeAlias

from vllm_promptcache.entrypoints.request_options import PromptModules
from vllm_promptcache.errors import PlanError, UnsupportedError
from vllm_promptcache.pml import PromptKind, prompt_kind
from vllm_promptcache.pml.ast import RoleName

Render: TypeAlias = Callable[[Sequence[Any], Any], tuple[Any, Any]]
"""Renders messages with a request's parameters, as vLLM's `BaseRenderer.render_messages` does."""

_SYSTEM_ROLES = ("system", "developer")
# What only decides how a conversation ends; that is read off each one.
_ENDS = ("add_generation_prompt", "continue_final_message")


class PMLChat:
    """A conversation whose first user message holds a PML prompt.

    Attributes:
        document: That prompt, in PML or as the field of the request has it.
        messages: The conversation with a word in place of that message's text.
    """

    def __init__(
        self, messages: Sequence[Any], index: int, part: int, document: str | PromptModules
    ) -> None:
        """Makes one.

        Args:
            messages: The conversation.
            index: The message with the prompt.
            part: Number of the text that is the prompt, within it; -1 if it is behind none of them.
            document: The prompt.

        Attributes:
            texts: Texts of the message with the prompt.
            text: What the client wrote for the prompt.
            turns: All further messages.
        """
        self.document = document
        self.index, self.part = index, part
        self.texts = _texts(messages[index]) or []
        self.text = document if isinstance(document, str) else "\n".join(self.texts)
        self.turns = list(messages[index + 1 :])
        message = {**messages[index], "content": "prompt"}
        self.messages = [*messages[:index], message, *self.turns]

    @classmethod
    def find(
        cls,
        messages: Sequence[Any],
        form: PromptModules | None = None,
        kind_of: Callable[[str], PromptKind | None] = prompt_kind,
    ) -> PMLChat | None:
        """Returns a conversation in OpenAI's form if it uses PML or `prompt_modules`.

        Args:
            messages: The conversation.
            form: The prompt without markup that its request brings.
            kind_of: What kind of PML a text is taken for. What names no schema is for `marks`.

        Raises:
            PlanError: PML stands where it cannot.
        """
        found = [
            (index, part)
            for index, message in enumerate(messages)
            if _role(message) in ("user", *_SYSTEM_ROLES)
            for part, text in enumerate(_texts(message) or ())
            if text is not None and kind_of(text) == "schema"
        ]
        first = next((i for i, m in enumerate(messages) if _role(m) not in _SYSTEM_ROLES), -1)
        if form is not None and form.parts:
            raise PlanError(
                "prompt_modules.parts goes with completions",
                'in a chat, mark parts of messages: {"type": "text", "text": ..., "module": true}',
            )
        if form is not None:
            texts = _texts(messages[first]) if first >= 0 and not found else None
            if texts is None or None in texts or _role(messages[first]) != "user":
                raise PlanError(
                    "prompt_modules goes with a conversation whose first message, but for system "
                    "messages, is a user message of plain text"
                )
            return cls(messages, first, -1, form)
        if not found:
            return None
        for index, _ in found:
            if _role(messages[index]) in _SYSTEM_ROLES:
                raise PlanError(
                    f"messages[{index}]: a PML prompt cannot stand in a system message",
                    "put it into the first user message; system text may stand in the schema's "
                    "<system>, or in a system message without PML",
                )
        index, part = found[-1]
        if index != first or len(found) > 1:
            raise PlanError(
                f"messages[{index}]: one PML prompt may be in a conversation, in its first message "
                "that is no system message",
                "write later turns without PML",
            )
        texts = _texts(messages[index]) or []
        if None in texts:
            raise PlanError(f"messages[{index}]: a PML prompt goes with parts of text only")
        return cls(messages, index, part, texts[part] or "")


class RenderedChat:
    """A conversation as its request has it rendered; see `plan.chat.Chat`.

    Args:
        chat: The conversation.
        conversation: The same as vLLM has parsed it, from `chat.messages`.
        params: vLLM's `ChatParams` of the request.
        render: vLLM's way to render.

    Raises:
        UnsupportedError: The template has messages that a prompt cannot stand behind.
    """

    def __init__(
        self, chat: PMLChat, conversation: Sequence[Any], params: Any, render: Render
    ) -> None:
        self._chat, self._params, self._render = chat, params, render
        # Nothing in the conversation can be mistaken for it.
        self._probe = f"prompt-{secrets.token_hex(16)}"
        system = conversation[: chat.index]
        if any(_role(message) == "developer" for message in system):
            self._check_developer()
        self.key = _key(params)
        self.system: Sequence[str] = [
            self._joined("system", _plain_texts(message)) for message in system
        ]
        self.before, self.behind = self._around()

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        """Renders other messages as the request's would be; raises what the template raises."""
        ends = {"add_generation_prompt": add_generation_prompt, "continue_final_message": False}
        kwargs = {**self._params.chat_template_kwargs, **ends}
        return self._text(messages, replace(self._params, chat_template_kwargs=kwargs))

    def gaps(self, roles: Sequence[RoleName]) -> list[str]:
        """Text around the conversation's first messages; see `plan.chat.Chat.gaps`."""
        probes = self._probes(len(roles))
        messages = [
            {"role": role, "content": probe} for role, probe in zip(roles, probes, strict=True)
        ]
        try:
            text = self._text([*messages, *self._chat.turns], self._params)
        # Templates raise whatever they like.
        except Exception as error:
            raise UnsupportedError(
                "the model's chat template does not write the messages that the PML prompt and "
                f"its schema hold ({', '.join(roles)}): {error}",
                "leave roles out of the schema: a chat then has all of it in one user message",
            ) from error
        return _split(text, probes)

    def _around(self) -> tuple[str, str]:
        """Text of the user's message before and behind the document."""
        texts, part = list(self._chat.texts), self._chat.part
        if part < 0:
            return "", self._joined("user", texts)
        texts[part] = self._probe
        before, _, behind = self._joined("user", texts).partition(self._probe)
        return before, behind

    def _joined(self, role: RoleName, texts: Sequence[str]) -> str:
        """Texts of a message as the server or the template joins them."""
        if len(texts) < 2:
            return "".join(texts)
        probes = self._probes(len(texts))
        content = [{"type": "text", "text": probe} for probe in probes]
        others = [{"role": "user", "content": "text"}] if role == "system" else []
        gaps = _split(self.render([{"role": role, "content": content}, *others], False), probes)
        glue = [*gaps[1:-1], ""]
        return "".join(text + gap for text, gap in zip(texts, glue, strict=True))

    def _check_developer(self) -> None:
        (probe,) = self._probes(1)
        user = {"role": "user", "content": "text"}
        texts = {self.render([{"role": r, "content": probe}, user], False) for r in _SYSTEM_ROLES}
        if len(texts) > 1:
            raise UnsupportedError(
                "the model's chat template has developer messages of their own, which cannot stand "
                "before a PML prompt",
                "send a system message instead",
            )

    def _probes(self, num: int) -> list[str]:
        return [f"{self._probe}-{number}-" for number in range(num)]

    def _text(self, messages: Sequence[Any], params: Any) -> str:
        _, prompt = self._render(messages, params)
        text = prompt.get("prompt")
        if not isinstance(text, str):
            raise UnsupportedError("this model's chats are rendered to tokens, not to text")
        return text


def _key(params: Any) -> bytes:
    """Digest of what a request gives the chat template beside messages."""
    given = {k: v for k, v in params.chat_template_kwargs.items() if k not in _ENDS}
    shown = params.chat_template, params.chat_template_content_format, given
    return sha256(json.dumps(shown, sort_keys=True, default=repr).encode()).digest()


def _split(text: str, probes: Sequence[str]) -> list[str]:
    """Text around probes.

    Raises:
        UnsupportedError: They are not in it one behind the other, each once.
    """
    gaps, rest = [], text
    for probe in probes:
        gap, found, rest = rest.partition(probe)
        if not found or probe in rest:
            raise UnsupportedError(
                "the model's chat template changes the order of this conversation's messages, or "
                "leaves some out",
                "leave out system messages and roles, or use /v1/completions",
            )
        gaps.append(gap)
    return [*gaps, rest]


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None


def _plain_texts(message: Any) -> list[str]:
    texts = _texts(message) or []
    if None in texts:
        raise PlanError("a system message before a PML prompt goes with parts of text only")
    return texts


def _texts(message: Any) -> list[Any] | None:
    """Texts of a message's parts, each None if it is another kind; None without content."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        return None
    return [
        part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        for part in content
    ]
