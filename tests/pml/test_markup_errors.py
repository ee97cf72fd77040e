"""Malformed markup: the message, the place and the caret of each mistake."""

import pytest

from tests.pml.marked import assert_refused
from vllm_promptcache.pml import parse_prompt
from vllm_promptcache.pml.diagnostics import FORBIDDEN_CHARACTER
from vllm_promptcache.pml.source import forbidden_character

NAMES = "names consist of letters, digits, `_`, `.` and `-`; white space separates attributes"
ENTITIES = "known are `&lt;`, `&gt;`, `&amp;`, `&quot;`, `&apos;`; others as `&#8364;`"

DOCUMENTS = {
    "empty": ("▲", "the document is empty", "write one root element, `<schema>` or `<prompt>`"),
    "blank": (
        " \n ▲",
        "the document is empty",
        "write one root element, `<schema>` or `<prompt>`",
    ),
    "text-before-root": ("▲hello <prompt/>", "text outside of the root element", "put it inside"),
    "text-after-root": (
        "<prompt/>\n ▲hello",
        "text outside of the root element",
        "put it inside",
    ),
    "cdata-after-root": (
        "<prompt/>▲<![CDATA[x]]>",
        "text outside of the root element",
        "put it inside",
    ),
    "two-roots": ("<prompt/>\n▲<prompt/>", "a second root element", "a document has one root"),
    "two-open-roots": (
        "<prompt></prompt>▲<prompt></prompt>",
        "a second root element",
        "a document has one root",
    ),
    "stray-close": ("<prompt/>▲</prompt>", "a closing tag that closes nothing", "leave it out"),
    "stray-close-first": ("▲</a><prompt/>", "a closing tag that closes nothing", "leave it out"),
    "late-declaration": (
        ' ▲<?xml version="1.0"?><prompt/>',
        "the XML declaration is not at the start",
        "make it the first line",
    ),
    "bad-declaration": (
        "▲<?xml encoding='x'?><prompt/>",
        "malformed XML declaration",
        'write `<?xml version="1.0"?>`',
    ),
    "unclosed": ("<prompt>▲<a>text", "`<a>` is never closed", "add `</a>`"),
    "mismatch": (
        "<prompt>\n <a>\n▲</prompt>",
        "`</prompt>` closes `<a>`, which was opened at 2:2",
        "write `</a>` before it",
    ),
    "doctype": ("▲<!DOCTYPE prompt><prompt/>", "a DTD is not supported", "leave the DOCTYPE out"),
    "instruction": (
        "<prompt>▲<?php echo ?></prompt>",
        "processing instructions are not supported",
        "leave it out",
    ),
}
TAGS = {
    "bare-less-than": ("if a ▲< b:", "a bare `<` does not begin a tag", "write `&lt;`"),
    "less-than-digit": ("if a ▲<5:", "a bare `<` does not begin a tag", "write `&lt;`"),
    "less-than-name": (
        "if a <b ▲then c",
        "attribute `then` has no value",
        'write `then="..."`, or `&lt;` if no tag is meant',
    ),
    "no-value": (
        "<a ▲b/>",
        "attribute `b` has no value",
        'write `b="..."`, or `&lt;` if no tag is meant',
    ),
    "no-value-before-another": (
        '<a ▲name x="1"/>',
        "attribute `name` has no value",
        'write `name="..."`, or `&lt;` if no tag is meant',
    ),
    "no-quotes": ("<a ▲b=c/>", "the value of attribute `b` is not quoted", 'write `b="..."`'),
    "no-quotes-after-space": (
        "<a ▲b = c/>",
        "the value of attribute `b` is not quoted",
        'write `b="..."`',
    ),
    "open-quote": ('<a ▲b="c/>', "the value of attribute `b` never ends", "close the quote"),
    "less-than-in-value": (
        '<a b="1 ▲< 2"/>',
        "a bare `<` is not allowed in an attribute value",
        "write `&lt;`, or close the quote before it",
    ),
    "less-than-in-single-quotes": (
        "<a b='1 ▲< 2'/>",
        "a bare `<` is not allowed in an attribute value",
        "write `&lt;`, or close the quote before it",
    ),
    "no-space": ('<a b="1"▲c="2"/>', "unexpected `c` in a tag", NAMES),
    "bad-name": ("<a▲:b/>", "unexpected `:b` in a tag", NAMES),
    "stray-quote": ('<a ▲"b"/>', 'unexpected `"` in a tag', "a tag ends with `>` or `/>`"),
    "stray-slash": ("<a ▲/ >", "unexpected `/` in a tag", "a tag ends with `>` or `/>`"),
    "unfinished-tag": ('▲<a b="1" <c/>', 'the tag `<a b="1"` never ends', "end it with `>`"),
    "unfinished-close": ("<a>▲</a <b/>", "malformed closing tag `</a`", "write `</name>`"),
    "close-with-attribute": (
        '<a>▲</a b="1">',
        'malformed closing tag `</a b="1"`',
        "write `</name>`",
    ),
    "duplicate": (
        '<a b="1" c="2"\n  ▲b="3"/></prompt>',
        "attribute `b` is given twice",
        "leave one out",
    ),
    "bad-space": (
        '<a xml:space="▲keep"/></prompt>',
        "`keep` is no value of `xml:space`",
        "write `preserve` or `default`",
    ),
}
CHARACTERS = {
    "bare-ampersand": ("fish ▲& chips", "a bare `&` is not allowed", "write `&amp;`"),
    "bare-ampersand-in-value": (
        '<a b="fish ▲& chips"/>',
        "a bare `&` is not allowed",
        "write `&amp;`",
    ),
    "ampersand-after-entity": ("&lt; ▲&", "a bare `&` is not allowed", "write `&amp;`"),
    "no-semicolon": ("a ▲&lt b", "a bare `&` is not allowed", "write `&amp;`"),
    "unknown-entity": ("a▲&nbsp;b", "unknown entity `&nbsp;`", ENTITIES),
    "null-reference": ("▲&#0;", "`&#0;` is not a character that XML allows", ""),
    "control-reference": ("▲&#x1B;", "`&#x1B;` is not a character that XML allows", ""),
    "surrogate-reference": ("▲&#xD800;", "`&#xD800;` is not a character that XML allows", ""),
    "reference-too-large": ("▲&#1114112;", "`&#1114112;` is not a character that XML allows", ""),
    "cdata-end": ("a ▲]]> b", "`]]>` ends no CDATA section", "write `]]&gt;`"),
    "comment-dashes": (
        "<!-- a ▲-- b -->",
        "`--` is not allowed inside a comment",
        "a comment ends with `-->`",
    ),
    "comment-three-dashes": (
        "<!-- a ▲--->",
        "`--` is not allowed inside a comment",
        "a comment ends with `-->`",
    ),
    "open-comment": ("▲<!-- a - b", "the comment never ends", "end it with `-->`"),
    "open-cdata": ("▲<![CDATA[ a ]] >", "the CDATA section never ends", "end it with `]]>`"),
}


@pytest.mark.parametrize(("marked", "message", "hint"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_malformed_document(marked: str, message: str, hint: str) -> None:
    assert_refused(parse_prompt, marked, message, hint)


@pytest.mark.parametrize(("content", "message", "hint"), TAGS.values(), ids=TAGS)
def test_malformed_tag(content: str, message: str, hint: str) -> None:
    assert_refused(parse_prompt, f'<prompt schema="s">\n {content}', message, hint)


@pytest.mark.parametrize(("content", "message", "hint"), CHARACTERS.values(), ids=CHARACTERS)
def test_malformed_characters(content: str, message: str, hint: str) -> None:
    assert_refused(parse_prompt, f'<prompt schema="s">\n {content}</prompt>', message, hint)


@pytest.mark.parametrize("char", ["\0", "\x1b", "\x0c", "\ud800", "\uffff"])
def test_forbidden_character_is_refused_and_not_repeated(char: str) -> None:
    with pytest.raises(ValueError, match="is not allowed") as caught:
        parse_prompt(f'<prompt schema="s">a{char}b</prompt>')
    assert f"<prompt>:1:21: character U+{ord(char):04X} is not allowed" in str(caught.value)
    assert char not in str(caught.value)


@pytest.mark.parametrize("around", ["ab", "é"])
def test_forbidden_characters_are_those_of_xml(around: str) -> None:
    chars = [*map(chr, range(256)), "\ud7ff", "\ud800", "\udfff", "\ufffd", "\ufffe", "\U0010ffff"]
    found = [char for char in chars if forbidden_character(around + char + around)]
    expected = [char for char in chars if FORBIDDEN_CHARACTER.match(char)]
    assert found == expected


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_every_line_end_counts_once(newline: str) -> None:
    with pytest.raises(ValueError, match="bare `&`") as caught:
        parse_prompt(newline.join(("\ufeff<prompt", 'schema="s">', "", "fish & chips</prompt>")))
    assert str(caught.value).splitlines()[:3] == [
        "<prompt>:4:6: a bare `&` is not allowed",
        "fish & chips</prompt>",
        "     ^",
    ]
