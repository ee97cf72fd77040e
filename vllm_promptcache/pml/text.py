"""Character data: references, CDATA sections and the white space rule."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from lark import Token

from vllm_promptcache.pml.ast import Text
from vllm_promptcache.pml.diagnostics import FORBIDDEN_CHARACTER, quote
from vllm_promptcache.pml.document import Document

WHITE_SPACE = " \t\n"

_CDATA_START, _CDATA_END = "<![CDATA[", "]]>"
_ENTITIES = {"lt": "<", "gt": ">", "amp": "&", "quot": '"', "apos": "'"}
_REFERENCE = re.compile(
    r"&#0*(?P<decimal>[0-9]{1,7});|&#x0*(?P<hex>[0-9A-Fa-f]{1,6});|&(?P<entity>[A-Za-z]\w*);|&"
)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a text node; `collapsible` is white space that counts as one space at an end."""

    text: str
    offset: int
    collapsible: bool


def decode(document: Document, raw: str, offset: int) -> str:
    """Replaces the references in `raw`, which stands at `offset` of the document.

    Raises:
        PMLError: A bare `&`, an unknown entity or a character that XML does not allow.
    """

    def replace(reference: re.Match[str]) -> str:
        return _referenced(document, reference, offset + reference.start())

    return _REFERENCE.sub(replace, raw) if "&" in raw else raw


def text_node(document: Document, tokens: Sequence[Token], preserve: bool) -> Text | None:
    """Joins adjacent tokens to one node; None if only white space is left that does not count."""
    if not preserve and all(token.type == "BLANK" for token in tokens):
        return None  # Half the text of a document: worth a short cut.
    read = [part for token in tokens for part in _parts(document, token)]
    parts = read if preserve else _collapse(read)
    if not parts:
        return None
    first = next((part for part in parts if not part.collapsible), parts[0])
    return Text("".join(part.text for part in parts), document.location(first.offset))


def plain_text(text: str, preserve: bool) -> str:
    """Applies the white space rule to text without markup, such as that of a file."""
    return text if preserve else "".join(part.text for part in _collapse(_split(text, 0)))


def _collapse(parts: Sequence[_Part]) -> Sequence[_Part]:
    leading = list(takewhile(_is_collapsible, parts))
    if len(leading) == len(parts):
        return []
    trailing = list(takewhile(_is_collapsible, reversed(parts)))
    body = parts[len(leading) : len(parts) - len(trailing)]
    return [*_one_space(leading), *body, *_one_space(trailing)]


def _one_space(parts: Sequence[_Part]) -> Sequence[_Part]:
    return [_Part(" ", parts[0].offset, collapsible=True)] if parts else []


def _is_collapsible(part: _Part) -> bool:
    return part.collapsible


def _parts(document: Document, token: Token) -> Sequence[_Part]:
    offset = token.start_pos or 0
    if token.type == "CDATA":
        body = token[len(_CDATA_START) : -len(_CDATA_END)]
        return [_Part(body, offset, collapsible=False)] if body else []
    if _CDATA_END in token:
        where = offset + token.index(_CDATA_END)
        raise document.error(where, "`]]>` ends no CDATA section", "write `]]&gt;`")
    return [
        part if part.collapsible else _decoded(document, part) for part in _split(token, offset)
    ]


def _decoded(document: Document, part: _Part) -> _Part:
    return _Part(decode(document, part.text, part.offset), part.offset, collapsible=False)


def _split(text: str, offset: int) -> Sequence[_Part]:
    """Parts the white space at both ends from the rest; leaves out what is empty."""
    start = len(text) - len(text.lstrip(WHITE_SPACE))
    end = max(start, len(text.rstrip(WHITE_SPACE)))
    parts = (
        _Part(text[:start], offset, collapsible=True),
        _Part(text[start:end], offset + start, collapsible=False),
        _Part(text[end:], offset + end, collapsible=True),
    )
    return [part for part in parts if part.text]


def _referenced(document: Document, reference: re.Match[str], offset: int) -> str:
    if entity := reference["entity"]:
        if entity not in _ENTITIES:
            hint = "known are `&lt;`, `&gt;`, `&amp;`, `&quot;`, `&apos;`; others as `&#8364;`"
            raise document.error(offset, f"unknown entity {quote(reference[0])}", hint)
        return _ENTITIES[entity]
    if not (reference["decimal"] or reference["hex"]):
        raise document.error(offset, "a bare `&` is not allowed", "write `&amp;`")
    code = int(reference["hex"], 16) if reference["hex"] else int(reference["decimal"])
    if code > 0x10FFFF or FORBIDDEN_CHARACTER.match(chr(code)):
        raise document.error(offset, f"{quote(reference[0])} is not a character that XML allows")
    return chr(code)
