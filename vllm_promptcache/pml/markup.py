"""From text to a tree of elements: well-formed markup, whatever the elements mean."""

from functools import cache
from typing import cast

from lark import Lark, Token, Tree, UnexpectedCharacters, UnexpectedToken

from vllm_promptcache.pml.ast import Source, Text
from vllm_promptcache.pml.diagnostics import did_you_mean, error_at, pml_error, quote
from vllm_promptcache.pml.elements import Element, TagReader
from vllm_promptcache.pml.malformed import malformed_markup
from vllm_promptcache.pml.nesting import Nesting, start_of, tag_name
from vllm_promptcache.pml.reader import read_well_formed
from vllm_promptcache.pml.source import Limits
from vllm_promptcache.pml.text import WHITE_SPACE, Piece, text_node

_MISPLACED = {
    "TEXT": ("text outside of the root element", "put it inside"),
    "CDATA": ("text outside of the root element", "put it inside"),
    "START_TAG": ("a second root element", "a document has one root"),
    "EMPTY_TAG": ("a second root element", "a document has one root"),
    "END_TAG": ("a closing tag that closes nothing", "leave it out"),
    "XML_DECLARATION": ("the XML declaration is not at the start", "make it the first line"),
    "$END": ("the document is empty", "write one root element, `<schema>` or `<prompt>`"),
}


def read_markup(source: Source, limits: Limits, root_name: str) -> Element:
    """Reads the root element of a document, which must have that name.

    Raises:
        PMLError: The markup is malformed or exceeds a limit, or the root is another element.
    """
    element = read_well_formed(source, limits) or read_by_grammar(source, limits)
    if element.name != root_name:
        message = f"the root is {quote(f'<{element.name}>')}, not `<{root_name}>`"
        hint = did_you_mean(element.name, (root_name,))
        raise pml_error(source, element.location, message, hint)
    return element


def read_by_grammar(source: Source, limits: Limits) -> Element:
    """Reads the root element of a document with the grammar, which can say what is wrong.

    Raises:
        PMLError: The markup is malformed or exceeds a limit.
    """
    tree = _parse(source, limits)
    root = next(child for child in tree.children if isinstance(child, Tree))
    return _element(root, TagReader(source, limits.max_nodes), preserve=False)


@cache
def load_grammar() -> Lark:
    """Loads the grammar, once; takes tens of milliseconds."""
    return Lark.open("pml.lark", rel_to=__file__, parser="lalr", lexer="basic")


def _parse(source: Source, limits: Limits) -> Tree[Token]:
    parser = load_grammar().parse_interactive(source.text)
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


def _element(tree: Tree[Token], tags: TagReader, preserve: bool) -> Element:
    """Turns the grammar's tree into elements, from the root down as `xml:space` is inherited."""
    tag, *nodes = tree.children
    assert isinstance(tag, Token), "the grammar begins an element with its tag"
    name, location = tag_name(tag), start_of(tag)
    attributes, preserve = tags.attributes(tag, name, location, tag.start_pos or 0, preserve)
    # What is no tree is the closing tag.
    trees = (node for node in nodes if isinstance(node, Tree))
    children = (_child(tree, tags, preserve) for tree in trees)
    return Element(name, attributes, list(filter(None, children)), preserve, location)


def _child(tree: Tree[Token], tags: TagReader, preserve: bool) -> Element | Text | None:
    if tree.data == "element":
        return _element(tree, tags, preserve)
    return text_node(tags.source, [_piece(cast(Token, token)) for token in tree.children], preserve)


def _piece(token: Token) -> Piece:
    return Piece(str(token), token.start_pos or 0, start_of(token), token.type == "CDATA")
