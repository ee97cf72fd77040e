"""PML in a conversation: its first user message may be a PML prompt.

The model's own chat template renders the conversation with a probe in place of the document; what
it writes around the probe (tools, further turns, the generation prompt) is new text of the plan.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from vllm_promptcache.entrypoints.request_options import current_options
from vllm_promptcache.errors import PlanError, UnsupportedError
from vllm_promptcache.layout.tokenizer import LayoutTokenizer
from vllm_promptcache.plan.chat import Conversation
from vllm_promptcache.pml import Prompt, is_prompt


class PMLChat:
    """A conversation whose first message is a PML prompt.

    Attributes:
        document: That prompt, in PML or as a tree.
        text: What the client wrote in its place.
        messages: The conversation with a probe in its place.
    """

    def __init__(self, messages: Sequence[Any], document: str | Prompt) -> None:
        self.document = document
        self.text = _user_text(messages[0]) or ""
        # Nothing in the conversation can be mistaken for it.
        self._probe = f"prompt-{secrets.token_hex(16)}"
        self.messages = [{"role": "user", "content": self._probe}, *messages[1:]]

    @classmethod
    def find(cls, messages: Sequence[Any]) -> PMLChat | None:
        """Returns a conversation in OpenAI's form if it uses PML or `prompt_modules`.

        Raises:
            PlanError: PML stands where it cannot.
        """
        found = [i for i, text in enumerate(map(_user_text, messages)) if text and is_prompt(text)]
        modules = current_options().prompt_modules
        if modules is not None and modules.is_prompt:
            if found or not messages or _user_text(messages[0]) is None:
                raise PlanError(
                    "prompt_modules goes with a conversation that begins with a user message of "
                    "plain text"
                )
            return cls(messages, modules.to_prompt(_user_text(messages[0]) or ""))
        if not found:
            return None
        if found != [0]:
            raise PlanError(
                f"messages[{found[-1]}]: a PML prompt must be the first message of a conversation",
                "put system text into the schema's <system>, and write later turns without PML",
            )
        return cls(messages, _user_text(messages[0]) or "")

    def read(self, rendered: Any, tokenizer: LayoutTokenizer) -> Conversation:
        """Tells what the template wrote around the document.

        Args:
            rendered: `messages` as the chat template wrote them.
            tokenizer: Knows the template.

        Raises:
            UnsupportedError: The template did not write the first message like any other.
        """
        parts = rendered.split(self._probe) if isinstance(rendered, str) else ()
        if len(parts) == 2:
            head, tail = parts
            conversation = Conversation.of(head, tail, tokenizer.roles, tokenizer.bos_text)
            if conversation is not None:
                return conversation
        raise UnsupportedError(
            "the model's chat template writes the first message of this conversation in a way of "
            "its own, so it cannot be a PML prompt",
            "leave out tools, or use /v1/completions",
        )


def _user_text(message: Any) -> str | None:
    """The text of a user message that holds nothing but one text."""
    if not isinstance(message, dict) or message.get("role") != "user":
        return None
    content = message.get("content")
    if isinstance(content, list) and len(content) == 1:
        (content,) = content
        if isinstance(content, dict):
            content = content.get("text")
    return content if isinstance(content, str) else None
