"""How an error reads: the line with the fault, a caret under it, a hint."""

import difflib
import re
from collections.abc import Iterable
from itertools import islice

from vllm_promptcache.errors import FieldError, PMLError
from vllm_promptcache.pml.ast import FieldLocation, Location, Place, Source

FORBIDDEN_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
"""What XML 1.0 allows in no document, not even as a character reference."""

_MAX_QUOTE_LEN = 60
_MAX_LINE_LEN = 120
_ELLIPSIS = "..."
# Comparing takes about 50 us a name; a schema may have many thousands.
_MAX_NUM_COMPARED = 1_000
# Characters of a document whose line ends are counted at once.
_STRETCH = 65_536


def pml_error(source: Source, location: Place, message: str, hint: str | None = None) -> PMLError:
    """Makes the error for a place in a source, for the caller to raise.

    Args:
        source: The document at fault.
        location: Where in it; the caret stands there. Or the field of a request at fault.
        message: What is wrong, in one line.
        hint: How to mend it, in one line.
    """
    if isinstance(location, FieldLocation):
        return FieldError(message, location.field, hint)
    line, caret = _window(_line_at(source.text, location.line), location.column - 1)
    # Lone surrogates and escape codes must not reach a terminal or an HTTP answer.
    line = FORBIDDEN_CHARACTER.sub("\ufffd", line)
    return PMLError(message, source.name, location.line, location.column, line, caret, hint)


def error_at(source: Source, offset: int, message: str, hint: str | None = None) -> PMLError:
    """Like `pml_error` for a place given as offset into the source."""
    return pml_error(source, advance(Location(1, 1), source.text[:offset]), message, hint)


def advance(location: Location, text: str) -> Location:
    """The place behind `text`, which begins at `location`."""
    num_newlines = text.count("\n")
    if not num_newlines:
        return Location(location.line, location.column + len(text))
    return Location(location.line + num_newlines, len(text) - text.rindex("\n"))


def did_you_mean(name: str, candidates: Iterable[str]) -> str | None:
    """Hint that names the candidate most like `name`, or None if none is like it."""
    # difflib is quadratic in the length, and nobody mistypes a name that long.
    if len(name) > _MAX_QUOTE_LEN:
        return None
    near = difflib.get_close_matches(name, islice(candidates, _MAX_NUM_COMPARED), n=1)
    return f"did you mean {quote(near[0])}?" if near else None


def quote(text: str) -> str:
    """Quotes a piece of the user's document within a message, shortened."""
    return f"`{shorten(text)}`"


def shorten(text: str) -> str:
    """Puts a piece of the user's document on one line that is not too long for a message."""
    if len(text) > _MAX_QUOTE_LEN:
        text = text[: _MAX_QUOTE_LEN - len(_ELLIPSIS)] + _ELLIPSIS
    return " ".join(text.split())


def _line_at(text: str, line: int) -> str:
    start, num_left = 0, line - 1
    # To count the line ends of a stretch is quick, to look for one after the other is not.
    while (num_found := text.count("\n", start, start + _STRETCH)) < num_left:
        start, num_left = start + _STRETCH, num_left - num_found
    for _ in range(num_left):
        start = text.index("\n", start) + 1
    end = text.find("\n", start)
    return text[start:] if end < 0 else text[start:end]


def _window(line: str, caret: int) -> tuple[str, int]:
    """Cuts a very long line to the part around the caret."""
    if len(line) <= _MAX_LINE_LEN:
        return line, caret
    start = max(0, min(caret - _MAX_LINE_LEN // 2, len(line) - _MAX_LINE_LEN))
    end = start + _MAX_LINE_LEN
    head = _ELLIPSIS if start > 0 else ""
    tail = _ELLIPSIS if end < len(line) else ""
    return head + line[start:end] + tail, caret - start + len(head)
