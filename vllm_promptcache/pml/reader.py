"""Reads well-formed markup in one pass over the text.

A prompt is read at every request, and the grammar takes several times as long. What is not read
here is for the grammar, which knows what is wrong with it: so no mistake is told in two places.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm_promptcache.errors import PMLError
from vllm_promptcache.pml.ast import Location, Source
from vllm_promptcache.pml.elements import Attribute, Element, TagReader
from vllm_promptcache.pml.nesting import is_module
from vllm_promptcache.pml.source import Limits
from vllm_promptcache.pml.text import WHITE_SPACE, Piece, text_node

_NAME = r"[A-Za-z_][A-Za-z0-9_.-]*+"
_S = r"[ \t\n]"
_ATTRIBUTES = rf"""(?:{_S}++[^ \t\n=<>/"'&]++{_S}*+={_S}*+(?:"[^"<]*+"|'[^'<]*+'))*+"""
# Text and what ends it: the terminals of the grammar, or the end of the document.
_TOKEN = re.compile(
    rf"([^<]*+)(?:<({_NAME})({_ATTRIBUTES}){_S}*+(/?)>|</({_NAME}){_S}*+>|(<!\[CDATA\[.*?\]\]>)"
    rf"|(?:<!--[^-]*+(?:-[^-]++)*+-->)++|(<\?xml{_S}++version{_S}*+=[^<>?]*+\?>)|\Z)",
    re.DOTALL,
)


class _NotWellFormed(Exception):
    """The document is malformed or exceeds a limit."""


def read_well_formed(source: Source, limits: Limits) -> Element | None:
    """Reads the root element of a document; None if the grammar has to look at it.

    What is returned is what the grammar's tree would make.
    """
    try:
        return _Reader(source, limits, TagReader(source, limits.max_nodes)).read()
    except (PMLError, _NotWellFormed):
        # The first fault found here need not be the one that the grammar meets first.
        return None


@dataclass(slots=True)
class _Reader:
    """What is known of a document up to one place of it."""

    source: Source
    limits: Limits
    tags: TagReader
    root: Element | None = None
    open_elements: list[Element] = field(default_factory=list)
    # Text that no tag has ended yet, and where its pieces begin.
    pieces: list[tuple[str, int]] = field(default_factory=list)
    num_nodes: int = 0
    num_modules: int = 0
    # The last place that was asked for, and its line.
    offset: int = 0
    line: int = 1
    line_start: int = 0

    def read(self) -> Element:
        text, pos = self.source.text, 0
        while pos < len(text):
            # Not `finditer`: that would search on behind a fault.
            token = _TOKEN.match(text, pos)
            if token is None:
                raise _NotWellFormed
            self._take(token, pos)
            pos = token.end()
        if self.root is None or self.open_elements:
            raise _NotWellFormed
        return self.root

    def _take(self, token: re.Match[str], offset: int) -> None:
        text, name, attributes, empty, end, cdata, declaration = token.groups()
        if text:
            self._text(text, offset)
            offset += len(text)
        if name:
            element = self._start(name, token[0][len(text) :] if attributes else "", offset)
            if not empty:
                self.open_elements.append(element)
        elif end:
            self._end(end)
        elif cdata:
            self._text(cdata, offset)
        elif declaration:
            self._declaration()

    def _start(self, name: str, tag: str, offset: int) -> Element:
        self._end_text()
        self._count(is_module=is_module(name))
        outer = self.open_elements[-1] if self.open_elements else None
        if len(self.open_elements) >= self.limits.max_depth or (self.root and not outer):
            raise _NotWellFormed
        location, preserve = self._location(offset), outer.preserve if outer else False
        attributes: Mapping[str, Attribute] = {}
        if tag:
            attributes, preserve = self.tags.attributes(tag, name, location, offset, preserve)
        element = Element(name, attributes, [], preserve, location)
        if outer:
            outer.children.append(element)
        else:
            self.root = element
        return element

    def _end(self, name: str) -> None:
        self._end_text()
        if not self.open_elements or self.open_elements.pop().name != name:
            raise _NotWellFormed

    def _declaration(self) -> None:
        if self.num_nodes:
            raise _NotWellFormed
        self._count()

    def _text(self, raw: str, offset: int) -> None:
        self._count()
        if self.open_elements:
            self.pieces.append((raw, offset))
        elif raw.strip(WHITE_SPACE):
            raise _NotWellFormed

    def _end_text(self) -> None:
        """Joins the pieces of text before a tag."""
        if not self.pieces:
            return
        pieces, self.pieces = self.pieces, []
        parent = self.open_elements[-1]
        if not parent.preserve and not any(raw.strip(WHITE_SPACE) for raw, _ in pieces):
            return  # Half the text of a document: worth a short cut.
        located = [
            Piece(raw, offset, self._location(offset), raw[0] == "<") for raw, offset in pieces
        ]
        if node := text_node(self.source, located, parent.preserve):
            parent.children.append(node)

    def _location(self, offset: int) -> Location:
        """The place of an offset that is not before the last one asked for."""
        text = self.source.text
        if num_newlines := text.count("\n", self.offset, offset):
            self.line += num_newlines
            self.line_start = text.rindex("\n", self.offset, offset) + 1
        self.offset = offset
        return Location(self.line, offset - self.line_start + 1)

    def _count(self, *, is_module: bool = False) -> None:
        self.num_nodes += 1
        self.num_modules += is_module
        limits = self.limits
        if self.num_nodes > limits.max_nodes or self.num_modules > limits.max_modules:
            raise _NotWellFormed
