"""Character data: references, CDATA sections and the white space rule."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from vllm_promptcache.errors import PMLError
from vllm_promptcache.pml.ast import Location, Source, Text
from vllm_promptcache.pml.diagnostics import FORBIDDEN_CHARACTER, advance, error_at, quote

WHITE_SPACE = " \t\n"

_CDATA_START, _CDATA_END = "<![CDATA[", "]]>"
_ENTITIES = {"lt": "<", "gt": ">", "amp": "&", "quot": '"', "apos": "'"}
_ENTITY_HINT = "known are `&lt;`, `&gt;`, `&amp;`, `&quot;`, `&apos;`; others as `&#8364;`"
_REFERENCE = re.compile(
    r"&#0*(?P<decimal>[0-9]{1,7});|&#x0*(?P<hex>[0-9A-Fa-f]{1,6});|&(?P<entity>[A-Za-z]\w*);|&"
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of character data as it is written, such as a whole CDATA section.

    Attributes:
        offset: Where it begins, in characters of the document.
        location: The same place.
    """

    raw: str
    offset: int
    location: Location
    is_cdata: bool = False


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a text node; no location marks white space that is one space at an end."""

    text: str
    location: Location | None


def decode(source: Source, raw: str, offset: int) -> str:
    """Replaces the references in `raw`, which stands at `offset` of the source.

    Raises:
        PMLError: A bare `&`, an unknown entity or a character that XML does not allow.
    """

    def replace(reference: re.Match[str]) -> str:
        return _referenced(source, reference, offset + reference.start())

    return _REFERENCE.sub(replace, raw) if "&" in raw else raw


def text_node(source: Source, pieces: Sequence[Piece], preserve: bool) -> Text | None:
    """Joins adjacent pieces to one node; None if only white space is left that does not count."""
    read = [part for piece in pieces for part in _parts(source, piece)]
    parts = read if preserve else _collapse(read)
    if not parts:
        return None
    location = next((part.location for part in parts if part.location), pieces[0].location)
    return Text("".join(part.text for part in parts), location)


def plain_text(text: str, preserve: bool) -> str:
    """Applies the white space rule to text without markup, such as that of a file."""
    before, body, after = _split(text)
    if preserve or not body:
        return text if preserve else ""
    return (before and " ") + body + (after and " ")


def _collapse(parts: Sequence[_Part]) -> Sequence[_Part]:
    num_leading = sum(1 for _ in takewhile(_collapses, parts))
    if num_leading == len(parts):
        return []
    num_trailing = sum(1 for _ in takewhile(_collapses, reversed(parts)))
    space = [_Part(" ", None)]
    body = parts[num_leading : len(parts) - num_trailing]
    return [*(space if num_leading else ()), *body, *(space if num_trailing else ())]


def _collapses(part: _Part) -> bool:
    return part.location is None


def _parts(source: Source, piece: Piece) -> Sequence[_Part]:
    start, offset = piece.location, piece.offset
    if piece.is_cdata:
        body = piece.raw[len(_CDATA_START) : -len(_CDATA_END)]
        return [_Part(body, start)] if body else []
    if _CDATA_END in piece.raw:
        where = offset + piece.raw.index(_CDATA_END)
        raise error_at(source, where, "`]]>` ends no CDATA section", "write `]]&gt;`")
    before, body, after = _split(piece.raw)
    body = decode(source, body, offset + len(before))
    parts = (_Part(before, None), _Part(body, advance(start, before)), _Part(after, None))
    return [part for part in parts if part.text]


def _split(text: str) -> tuple[str, str, str]:
    """Parts the white space at either end from the rest."""
    start = len(text) - len(text.lstrip(WHITE_SPACE))
    end = max(start, len(text.rstrip(WHITE_SPACE)))
    return text[:start], text[start:end], text[end:]


def _referenced(source: Source, reference: re.Match[str], offset: int) -> str:
    if reference["entity"] in _ENTITIES:
        return _ENTITIES[reference["entity"]]
    digits = reference["hex"] or reference["decimal"]
    if digits is None:
        raise _bad_reference(source, reference, offset)
    code = int(digits, 16 if reference["hex"] else 10)
    if code > 0x10FFFF or FORBIDDEN_CHARACTER.match(chr(code)):
        message = f"{quote(reference[0])} is not a character that XML allows"
        raise error_at(source, offset, message)
    return chr(code)


def _bad_reference(source: Source, reference: re.Match[str], offset: int) -> PMLError:
    if reference["entity"]:
        return error_at(source, offset, f"unknown entity {quote(reference[0])}", _ENTITY_HINT)
    return error_at(source, offset, "a bare `&` is not allowed", "write `&amp;`")
