"""Says what is wrong with markup that the grammar could not read.

The grammar only knows that no token begins at some `<`; here one rule after the other looks at the
text there until one recognises the mistake.
"""

import re
from dataclasses import dataclass

from vllm_promptcache.errors import PMLError
from vllm_promptcache.pml.ast import Source
from vllm_promptcache.pml.diagnostics import error_at, quote, shorten

# Possessive quantifiers: without them a rule could match by reading half a name.
_S = r"[ \t\n]"
_KEY = r"""[^ \t\n=<>/"'&]++"""
_EQUALS = rf"{_S}*+={_S}*+"
_WELL_FORMED_START = re.compile(
    rf"""<[A-Za-z_][A-Za-z0-9_.-]*+(?:{_S}++{_KEY}{_EQUALS}(?:"[^"<]*"|'[^'<]*'))*+"""
)


@dataclass(frozen=True, slots=True)
class _Rule:
    """A mistake; it lies at the pattern's group 1, whose text fills `{}` in message and hint."""

    pattern: re.Pattern[str]
    message: str
    hint: str

    def error(self, source: Source, offset: int) -> PMLError | None:
        found = self.pattern.match(source.text, offset)
        if found is None:
            return None
        what = shorten(found[1])
        return error_at(source, found.start(1), self.message.format(what), self.hint.format(what))


def _rule(pattern: str, message: str, hint: str) -> _Rule:
    return _Rule(re.compile(pattern, re.DOTALL), message, hint)


_MARKUP = (
    _rule(r"<!--.*?(--)", "`--` is not allowed inside a comment", "a comment ends with `-->`"),
    _rule(r"(<!--)", "the comment never ends", "end it with `-->`"),
    _rule(r"(<!\[CDATA\[)", "the CDATA section never ends", "end it with `]]>`"),
    _rule(r"(<!DOCTYPE)", "a DTD is not supported", "leave the DOCTYPE out"),
    _rule(r"(<\?xml)\b", "malformed XML declaration", 'write `<?xml version="1.0"?>`'),
    _rule(r"(<\?)", "processing instructions are not supported", "leave it out"),
    _rule(r"(</[^<>]*+)", "malformed closing tag `{}`", "write `</name>`"),
    _rule(r"(<)(?![A-Za-z_])", "a bare `<` does not begin a tag", "write `&lt;`"),
)

# Each is tried where the well-formed start of the tag ends.
_TAG = (
    _rule(
        rf"({_KEY})",
        "unexpected `{}` in a tag",
        "names consist of letters, digits, `_`, `.` and `-`; white space separates attributes",
    ),
    _rule(
        rf"{_S}++({_KEY}){_S}*+(?!=)",
        "attribute `{}` has no value",
        'write `{}="..."`, or `&lt;` if no tag is meant',
    ),
    _rule(
        rf"""{_S}++({_KEY}){_EQUALS}(?!["'])""",
        "the value of attribute `{}` is not quoted",
        'write `{}="..."`',
    ),
    _rule(
        rf"""{_S}++{_KEY}{_EQUALS}(?:"[^"<]*|'[^'<]*)(<)""",
        "a bare `<` is not allowed in an attribute value",
        "write `&lt;`, or close the quote before it",
    ),
    _rule(
        rf"{_S}++({_KEY}){_EQUALS}",
        "the value of attribute `{}` never ends",
        "close the quote",
    ),
    _rule(rf"""{_S}*+([="'/&])""", "unexpected `{}` in a tag", "a tag ends with `>` or `/>`"),
)


def malformed_markup(source: Source, offset: int) -> PMLError:
    """Makes the error for a `<` at `offset` that begins no token, for the caller to raise."""
    for rule in _MARKUP:
        if error := rule.error(source, offset):
            return error
    start = _WELL_FORMED_START.match(source.text, offset)
    assert start is not None, "the last rule above leaves only tags"
    for rule in _TAG:
        if error := rule.error(source, start.end()):
            return error
    return error_at(source, offset, f"the tag {quote(start[0])} never ends", "end it with `>`")
