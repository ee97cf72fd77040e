"""Marks of Anthropic's API, which vLLM drops where it makes a chat of a request.

It joins blocks of text, so marks cannot stay where they are: the marked texts travel beside the
chat, within the process, and are found again in its messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vllm_promptcache.compat.wrap import wrap
from vllm_promptcache.entrypoints.marks import Spot

TEXTS_FIELD = "prompt_module_texts"
"""Under this key the marked texts travel in a chat's request."""

MARK = "cache_control"


class MarkedTexts(tuple[str, ...]):
    """Texts that a request has marked. A type of its own, so that no client can send it."""


def read_marks() -> None:
    """Hooks the route `/v1/messages`, before it is made."""
    from vllm.entrypoints.anthropic import protocol
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages

    block = protocol.AnthropicContentBlock
    block.model_config["extra"] = "allow"
    for model in (block, protocol.AnthropicMessage, protocol.AnthropicMessagesRequest):
        model.model_rebuild(force=True)
    wrap(AnthropicServingMessages, "to_chat_completion_request", _to_chat)


def _to_chat(original: Callable[..., Any], cls: Any, request: Any, **kwargs: Any) -> Any:
    """Wraps `AnthropicServingMessages.to_chat_completion_request`."""
    chat = original(cls, request, **kwargs)
    last = len(request.messages) - 1
    found = list(_marked(request.system, "system", is_last=False))
    for number, message in enumerate(request.messages):
        found += _marked(message.content, message.role, is_last=number == last)
    if texts := MarkedTexts(found):
        chat.model_extra[TEXTS_FIELD] = texts
    return chat


def _marked(content: Any, role: str, *, is_last: bool) -> Iterator[str]:
    """Texts of a message that are marked and may be documents."""
    blocks = content if isinstance(content, list) else []
    for number, block in enumerate(blocks):
        ends = number + 1 == len(blocks)
        name = "tool" if block.type == "tool_result" else role
        spot = Spot(name, ends, ends and is_last)
        yield from filter(spot.may_have, _texts(block))


def _texts(block: Any) -> Iterator[str]:
    """Marked texts of a block; of a tool's result that is marked, all of them."""
    is_marked, inner = bool((block.model_extra or {}).get(MARK)), block.content
    if is_marked and block.text:
        yield block.text
    if is_marked and isinstance(inner, str):
        yield inner
    for part in inner if isinstance(inner, list) else ():
        if isinstance(part.get("text"), str) and (is_marked or part.get(MARK)):
            yield part["text"]
