"""A document on its way into the parser: normalised, and checked for size and characters."""

import re
from dataclasses import dataclass

from vllm_promptcache.pml.ast import Location, Source
from vllm_promptcache.pml.diagnostics import FORBIDDEN_CHARACTER, error_at, pml_error

_CONTROLS = bytes(code for code in range(32) if chr(code) not in "\t\n\r")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a document may ask of the parser.

    Attributes:
        max_document_bytes: Size in UTF-8; a schema counts together with its `src` files.
        max_depth: Nesting of elements; must stay well below Python's recursion limit.
        max_modules: Modules that are defined or imported.
        max_nodes: Elements together with pieces of text, and just as many attributes. Comments
            part pieces of text, so it bounds them as well.
    """

    max_document_bytes: int = 8 * 2**20
    max_depth: int = 64
    max_modules: int = 20_000
    max_nodes: int = 100_000


DEFAULT_LIMITS = Limits()

# A node takes some 30 to 60 us to read and to plan, and anyone may send a prompt.
PROMPT_LIMITS = Limits(max_modules=2_048, max_nodes=4_096)


def read_source(text: str, name: str, limits: Limits) -> Source:
    """Normalises a document.

    Raises:
        PMLError: It is too large or holds a character that XML does not allow.
    """
    num_bytes = size_bytes(text)
    if num_bytes > limits.max_document_bytes:
        message = f"the document has {num_bytes} bytes, more than {limits.max_document_bytes}"
        raise pml_error(Source(name, text), Location(1, 1), message)
    source = Source(name, normalize_newlines(text))
    if bad := forbidden_character(source.text):
        message = f"character {code_point(bad[0])} is not allowed"
        raise error_at(source, bad.start(), message)
    return source


def forbidden_character(text: str) -> re.Match[str] | None:
    """Finds the first character that XML allows in no document."""
    # Most texts are plain ASCII without one, and to delete bytes is far quicker than to search.
    if text.isascii() and len(text.encode().translate(None, _CONTROLS)) == len(text):
        return None
    return FORBIDDEN_CHARACTER.search(text)


def normalize_newlines(text: str) -> str:
    """Drops a byte order mark and turns CRLF and CR into a newline, as XML does."""
    text = text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def size_bytes(text: str) -> int:
    """Size in UTF-8; surrogates count too, they are refused later and with their place."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def code_point(char: str) -> str:
    """A character's name for messages, such as U+001B."""
    return f"U+{ord(char):04X}"
