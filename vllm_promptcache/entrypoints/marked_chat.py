"""Conversations with modules in their messages, as the model's own chat template writes them.

The template writes the conversation twice: as it is, and with probes in place of the modules. Where
the first is the second with the modules' texts in it, that is where the modules are. So the model
reads the very text that it would read without them, whatever the template.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from vllm_promptcache.entrypoints.marks import MarkReader, Spot, parts_of
from vllm_promptcache.errors import UnsupportedError
from vllm_promptcache.plan.written import Part, WrittenText
from vllm_promptcache.pml import FieldLocation, Inline, RoleName, Text

# Whose message a module is encoded in.
_ROLES: Mapping[str, RoleName] = {
    "system": "system",
    "developer": "system",
    "assistant": "assistant",
}
_HERE = FieldLocation("messages")


@dataclass(slots=True)
class MarkedChat:
    """A conversation with modules in its messages.

    Attributes:
        messages: The conversation as the template is to write it.
        probed: The same with a probe in place of each of `places`.
        places: Modules, and the first text that is not the system's, in order.
        probe: What all probes begin with; nothing in the conversation can be mistaken for it.
    """

    messages: list[Any] = field(default_factory=list)
    probed: list[Any] = field(default_factory=list)
    places: list[Part] = field(default_factory=list)
    probe: str = field(default_factory=lambda: f"module-{secrets.token_hex(16)}")

    @classmethod
    def of(cls, messages: Sequence[Any], reader: MarkReader) -> MarkedChat:
        """Takes a conversation in OpenAI's form apart.

        Raises:
            PMLError: PML that names no schema is malformed, or has what a message cannot hold.
        """
        chat = cls()
        for index, message in enumerate(messages):
            chat._add(index, message, reader, is_last=index + 1 == len(messages))
        return chat

    @property
    def has_modules(self) -> bool:
        """Whether there is any in it."""
        return any(isinstance(place, Inline) for place in self.places)

    def written(self, text: str, probed: str) -> WrittenText:
        """Finds the modules in the conversation.

        Args:
            text: What the template has written.
            probed: The same with probes.

        Raises:
            UnsupportedError: They are not where the probes are.
        """
        beginning, *parts = _aligned(text, self._gaps(probed), self.places)
        # A system message stands first in all prompts that have it.
        if _is_system(parts[0]):
            beginning = replace(beginning, text=beginning.text + parts.pop(0).text)
        return WrittenText(beginning.text, list(_joined(parts)))

    def _add(self, index: int, message: Any, reader: MarkReader, *, is_last: bool) -> None:
        name = message.get("role") if isinstance(message, Mapping) else None
        role = _ROLES.get(name or "", "user")
        written, probed, parts = [], [], list(parts_of(message))
        for number, (part, text) in enumerate(parts):
            ends = number + 1 == len(parts)
            spot = Spot(name or "", ends, ends and is_last)
            place = FieldLocation(f"messages[{index}].content[{number}]")
            nodes = reader.nodes(part, text, role, spot, place) if text else []
            written.append(_with_text(part, _text(nodes)) if nodes else part)
            probed.append(_with_text(part, self._probed(nodes, role)) if nodes else part)
        self.messages.append(_with_parts(message, written))
        self.probed.append(_with_parts(message, probed))

    def _probed(self, nodes: Iterable[Part], role: RoleName) -> str:
        return "".join(
            self._probe(node) if isinstance(node, Inline) or self._is_first(role) else node.text
            for node in nodes
        )

    def _is_first(self, role: RoleName) -> bool:
        """Whether nothing but the system's text lies before a text of a role."""
        return role != "system" and all(map(_is_system, self.places))

    def _probe(self, place: Part) -> str:
        self.places.append(place)
        return f"{self.probe}-{len(self.places)}-"

    def _gaps(self, probed: str) -> list[str]:
        """Text around the probes."""
        pieces = re.split(f"{self.probe}-([0-9]+)-", probed)
        if pieces[1::2] != [str(number + 1) for number in range(len(self.places))]:
            message = "the model's chat template changes the order of messages, or drops some"
            raise UnsupportedError(message)
        return pieces[::2]


def _is_system(part: Part) -> bool:
    return isinstance(part, Inline) and part.role == "system"


def _with_text(part: Any, text: str) -> Any:
    return text if isinstance(part, str) else {**part, "text": text}


def _with_parts(message: Any, parts: list[Any]) -> Any:
    if not parts:
        return message
    return {**message, "content": parts[0] if isinstance(message["content"], str) else parts}


def _aligned(text: str, gaps: Sequence[str], places: Sequence[Part]) -> list[Part]:
    """The whole text: the first gap, then each place and the gap behind it.

    Raises:
        UnsupportedError: It is not made of these.
    """
    parts: list[Part] = [Text(gaps[0], _HERE)]
    end = len(gaps[0]) if text.startswith(gaps[0]) else len(text)
    for place, behind in zip(places, gaps[1:], strict=True):
        trimmed = (found for found in _trimmed(place.text) if text.startswith(found + behind, end))
        if (found := next(trimmed, None)) is None:
            raise UnsupportedError("the model's chat template changes the text of messages")
        parts += replace(place, text=found), Text(behind, _HERE)
        end += len(found) + len(behind)
    if end != len(text):
        raise UnsupportedError("the model's chat template changes what it writes behind modules")
    return parts


def _trimmed(text: str) -> Iterator[str]:
    """A text as a template may write it."""
    yield text
    yield from (text.strip(), text.rstrip(), text.lstrip())


def _joined(parts: Iterable[Part]) -> Iterator[Part]:
    """Parts without empty ones, texts that follow each other as one.

    Line ends behind a module are the module's: servers join the parts of a message with them, and
    they need not be computed then.
    """
    groups = [list(group) for _, group in groupby((p for p in parts if p.text), type)]
    line_ends = ""
    for number, group in enumerate(groups):
        if isinstance(group[0], Text):
            text = _text(group)[len(line_ends) :]
            yield from [replace(group[0], text=text)] if text else []
            continue
        behind = _text(groups[number + 1]) if number + 1 < len(groups) else ""
        line_ends = behind[: len(behind) - len(behind.lstrip("\n"))]
        *others, last = group
        yield from (*others, replace(last, text=last.text + line_ends))


def _text(parts: Iterable[Part]) -> str:
    return "".join(part.text for part in parts)
