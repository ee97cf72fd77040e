"""From text to a tree of elements: well-formed markup, whatever the elements mean."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

from lark import Lark, Token, Tree, UnexpectedCharacters, UnexpectedToken

from vllm_promptcache.pml.ast import Location, Source, Text
from vllm_promptcache.pml.diagnostics import advance, did_you_mean, error_at, pml_error, quote
from vllm_promptcache.pml.malformed import malformed_markup
from vllm_promptcache.pml.nesting import Nesting, tag_name
from vllm_promptcache.pml.source import Limits
from vllm_promptcache.pml.text import WHITE_SPACE, decode, start_of, text_node

_SPACE = "xml:space"
# The grammar has checked the tag, so this need not.
_ATTRIBUTE = re.compile(r"""([ \t\n]+)([^ \t\n=<>/"'&]+)([ \t\n]*=[ \t\n]*)("[^"]*"|'[^']*')""")
_MISPLACED = {
    "TEXT": ("text outside of the root element", "put it inside"),
    "CDATA": ("text outside of the root element", "put it inside"),
    "START_TAG": ("a second root element", "a document has one root"),
    "EMPTY_TAG": ("a second root element", "a document has one root"),
    "END_TAG": ("a closing tag that closes nothing", "leave it out"),
    "XML_DECLARATION": ("the XML declaration is not at the start", "make it the first line"),
    "$END": ("the document is empty", "write one root element, `<schema>` or `<prompt>`"),
}


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute, its value decoded; `location` is that of its name."""

    name: str
    value: str
    location: Location
    value_location: Location


@dataclass(frozen=True, slots=True)
class Element:
    """An element of any name.

    Attributes:
        attributes: By name, in document order, without `xml:space`.
        preserve: Whether `xml:space="preserve"` holds inside.
        location: Where its tag begins.
    """

    name: str
    attributes: Mapping[str, Attribute]
    children: "tuple[Element | Text, ...]"
    preserve: bool
    location: Location


def read_markup(source: Source, limits: Limits, root_name: str) -> Element:
    """Reads the root element of a document, which must have that name.

    Raises:
        PMLError: The markup is malformed or exceeds a limit, or the root is another element.
    """
    tree = _parse(source, limits)
    root = next(child for child in tree.children if isinstance(child, Tree))
    element = _TreeReader(source, limits.max_nodes).element(root, preserve=False)
    if element.name != root_name:
        message = f"the root is {quote(f'<{element.name}>')}, not `<{root_name}>`"
        hint = did_you_mean(element.name, (root_name,))
        raise pml_error(source, element.location, message, hint)
    return element


@cache
def _grammar() -> Lark:
    return Lark.open("pml.lark", rel_to=__file__, parser="lalr", lexer="basic")


def _parse(source: Source, limits: Limits) -> Tree[Token]:
    parser = _grammar().parse_interactive(source.text)
    nesting = Nesting(source, limits)
    try:
        for token in parser.iter_parse():
            nesting.enter(token)
        nesting.end()
        tree: Tree[Token] = parser.feed_token(Token("$END", "", len(source.text)))
    except UnexpectedCharacters as error:
        raise malformed_markup(source, error.pos_in_stream or 0) from None
    except UnexpectedToken as error:
        token = error.token
        offset = token.start_pos + len(token) - len(token.lstrip(WHITE_SPACE))
        raise error_at(source, offset, *_MISPLACED[token.type]) from None
    return tree


@dataclass(slots=True)
class _TreeReader:
    """Turns the grammar's tree into elements, from the root down as `xml:space` is inherited."""

    source: Source
    max_attributes: int
    num_attributes: int = 0

    def element(self, tree: Tree[Token], preserve: bool) -> Element:
        tag = tree.children[0]
        assert isinstance(tag, Token), "the grammar begins an element with its tag"
        name = tag_name(tag)
        attributes = self._attributes(tag, len(f"<{name}"))
        if space := attributes.pop(_SPACE, None):
            preserve = self._preserves(space)
        children = tuple(self._children(tree.children, preserve))
        return Element(name, attributes, children, preserve, start_of(tag))

    def _children(
        self, nodes: Sequence[Token | Tree[Token]], preserve: bool
    ) -> Iterator[Element | Text]:
        for node in nodes:
            if isinstance(node, Token):
                continue  # The tags of the element itself.
            if node.data == "element":
                yield self.element(node, preserve)
            elif text := text_node(self.source, cast(list[Token], node.children), preserve):
                yield text

    def _attributes(self, tag: Token, end: int) -> dict[str, Attribute]:
        attributes: dict[str, Attribute] = {}
        behind = advance(start_of(tag), tag[:end])
        # Not `finditer`: that would look for attributes within a very long name.
        while found := _ATTRIBUTE.match(tag, end):
            attribute = self._attribute(found, behind, tag.start_pos or 0)
            if attribute.name in attributes:
                message = f"attribute {quote(attribute.name)} is given twice"
                raise pml_error(self.source, attribute.location, message, "leave one out")
            attributes[attribute.name] = attribute
            end, behind = found.end(), advance(behind, found[0])
        return attributes

    def _attribute(self, found: re.Match[str], before: Location, tag_offset: int) -> Attribute:
        space, name, equals, quoted = found.groups()
        location = advance(before, space)
        self.num_attributes += 1
        if self.num_attributes > self.max_attributes:
            raise pml_error(self.source, location, f"more than {self.max_attributes} attributes")
        value = decode(self.source, quoted[1:-1], tag_offset + found.start(4) + 1)
        return Attribute(name, value, location, advance(location, f'{name}{equals}"'))

    def _preserves(self, space: Attribute) -> bool:
        if space.value not in ("preserve", "default"):
            message = f"{quote(space.value)} is no value of `{_SPACE}`"
            hint = "write `preserve` or `default`"
            raise pml_error(self.source, space.value_location, message, hint)
        return space.value == "preserve"
