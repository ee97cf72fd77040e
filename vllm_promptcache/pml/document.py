"""A document on its way into the parser: checked for size and characters, places by offset."""

import re
from bisect import bisect_right
from dataclasses import dataclass

from vllm_promptcache.errors import PMLError
from vllm_promptcache.pml.ast import Location, Source
from vllm_promptcache.pml.diagnostics import FORBIDDEN_CHARACTER, pml_error

_NEWLINE = re.compile(r"\n")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a document may ask of the parser.

    Attributes:
        max_document_bytes: Size in UTF-8; a schema counts together with its `src` files.
        max_depth: Nesting of elements; stays well below Python's recursion limit.
        max_modules: Modules defined or imported.
        max_nodes: Elements, pieces of text and attributes, each.
    """

    max_document_bytes: int = 8 * 2**20
    max_depth: int = 64
    max_modules: int = 20_000
    max_nodes: int = 200_000


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Document:
    """A source whose places are offsets into its text.

    Attributes:
        source: The normalised text and its name.
        line_starts: Offset of the first character of each line.
    """

    source: Source
    line_starts: tuple[int, ...]

    @classmethod
    def read(cls, text: str, name: str, limits: Limits) -> "Document":
        """Normalises the text of a document.

        Raises:
            PMLError: It is too large or holds a character that XML does not allow.
        """
        num_bytes = size_bytes(text)
        if num_bytes > limits.max_document_bytes:
            message = f"the document has {num_bytes} bytes, more than {limits.max_document_bytes}"
            raise pml_error(Source(name, text), Location(1, 1), message)
        text = normalize_newlines(text)
        starts = (0, *(newline.end() for newline in _NEWLINE.finditer(text)))
        document = cls(Source(name, text), starts)
        if bad := FORBIDDEN_CHARACTER.search(text):
            raise document.error(bad.start(), f"character {code_point(bad[0])} is not allowed")
        return document

    def location(self, offset: int) -> Location:
        line = bisect_right(self.line_starts, offset)
        return Location(line, offset - self.line_starts[line - 1] + 1)

    def error(self, offset: int, message: str, hint: str | None = None) -> PMLError:
        """Makes the error for the caller to raise."""
        return pml_error(self.source, self.location(offset), message, hint)


def normalize_newlines(text: str) -> str:
    """Drops a byte order mark and turns CRLF and CR into a newline, as XML does."""
    text = text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def size_bytes(text: str) -> int:
    # Surrogates are refused later, with their place; here they must not raise.
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def code_point(char: str) -> str:
    return f"U+{ord(char):04X}"
