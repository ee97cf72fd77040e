"""From text to a tree of elements: well-formed markup, whatever the elements mean."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

from lark import Lark, Token, Tree, UnexpectedCharacters, UnexpectedToken

from vllm_promptcache.pml.ast import Text
from vllm_promptcache.pml.diagnostics import quote
from vllm_promptcache.pml.document import Document, Limits
from vllm_promptcache.pml.malformed import malformed_markup
from vllm_promptcache.pml.nesting import Nesting, tag_name
from vllm_promptcache.pml.text import decode, text_node

_SPACE = "xml:space"
# The grammar has checked the tag, so this need not.
_ATTRIBUTE = re.compile(r"""[ \t\n]+([^ \t\n=<>/"'&]+)[ \t\n]*=[ \t\n]*(?:"([^"]*)"|'([^']*)')""")
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
    """An attribute with its value decoded; the offsets are those of its name and its value."""

    name: str
    value: str
    offset: int
    value_offset: int


@dataclass(frozen=True, slots=True)
class Element:
    """An element of any name.

    Attributes:
        attributes: By name, in document order, without `xml:space`.
        offset: Where the tag begins.
        preserve: Whether `xml:space="preserve"` holds inside.
    """

    name: str
    attributes: Mapping[str, Attribute]
    children: "tuple[Element | Text, ...]"
    offset: int
    preserve: bool


def read_markup(document: Document, limits: Limits) -> Element:
    """Reads the root element of a document.

    Raises:
        PMLError: The markup is malformed or exceeds a limit.
    """
    tree = _parse(document, limits)
    root = next(child for child in tree.children if isinstance(child, Tree))
    return _TreeReader(document, limits.max_nodes).element(root, preserve=False)


@cache
def _grammar() -> Lark:
    return Lark.open("pml.lark", rel_to=__file__, parser="lalr", lexer="basic")


def _parse(document: Document, limits: Limits) -> Tree[Token]:
    parser = _grammar().parse_interactive(document.source.text)
    nesting = Nesting(document, limits)
    try:
        for token in parser.iter_parse():
            nesting.enter(token)
        nesting.end()
        tree: Tree[Token] = parser.feed_token(Token("$END", "", len(document.source.text)))
    except UnexpectedCharacters as error:
        raise malformed_markup(document, error.pos_in_stream or 0) from None
    except UnexpectedToken as error:
        raise document.error(error.token.start_pos, *_MISPLACED[error.token.type]) from None
    return tree


@dataclass(slots=True)
class _TreeReader:
    """Turns the grammar's tree into elements, from the root down as `xml:space` is inherited."""

    document: Document
    max_attributes: int
    num_attributes: int = 0

    def element(self, tree: Tree[Token], preserve: bool) -> Element:
        tag = tree.children[0]
        assert isinstance(tag, Token)
        attributes = self._attributes(tag)
        if space := attributes.pop(_SPACE, None):
            preserve = self._preserves(space)
        children = tuple(self._children(tree.children, preserve))
        return Element(tag_name(tag), attributes, children, tag.start_pos or 0, preserve)

    def _children(
        self, nodes: Sequence[Token | Tree[Token]], preserve: bool
    ) -> Iterator[Element | Text]:
        for node in nodes:
            if isinstance(node, Token):
                continue  # The tags of the element itself.
            if node.data == "element":
                yield self.element(node, preserve)
            elif text := text_node(self.document, cast(list[Token], node.children), preserve):
                yield text

    def _attributes(self, tag: Token) -> dict[str, Attribute]:
        attributes: dict[str, Attribute] = {}
        end = len(tag_name(tag)) + 1
        # Not `finditer`, which would look for an attribute inside a very long name.
        while found := _ATTRIBUTE.match(tag, end):
            end = found.end()
            attribute = self._attribute(found, tag.start_pos or 0)
            if attribute.name in attributes:
                message = f"attribute {quote(attribute.name)} is given twice"
                raise self.document.error(attribute.offset, message, "leave one out")
            attributes[attribute.name] = attribute
        return attributes

    def _attribute(self, found: re.Match[str], tag_offset: int) -> Attribute:
        group = 2 if found[2] is not None else 3
        name_offset, value_offset = tag_offset + found.start(1), tag_offset + found.start(group)
        self.num_attributes += 1
        if self.num_attributes > self.max_attributes:
            message = f"more than {self.max_attributes} attributes"
            raise self.document.error(name_offset, message)
        value = decode(self.document, found[group], value_offset)
        return Attribute(found[1], value, name_offset, value_offset)

    def _preserves(self, space: Attribute) -> bool:
        if space.value not in ("preserve", "default"):
            message = f"{quote(space.value)} is no value of `{_SPACE}`"
            hint = "write `preserve` or `default`"
            raise self.document.error(space.value_offset, message, hint)
        return space.value == "preserve"
