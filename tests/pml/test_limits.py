"""Limits hold, and hostile documents are refused fast and with little memory."""

import time
import tracemalloc
from functools import partial

import pytest

from tests.pml.marked import assert_refused
from vllm_promptcache.errors import PMLError
from vllm_promptcache.pml import Limits, parse_prompt, parse_schema

KIB_256 = 2**18
SMALL = Limits(max_document_bytes=200, max_depth=3, max_modules=3, max_nodes=8)


@pytest.mark.parametrize(
    ("marked", "message"),
    [
        ("<prompt schema='s'><a><b>▲<c/></b></a></prompt>", "more than 3 levels of nesting"),
        ("<prompt schema='s'><a><b>▲<c>", "more than 3 levels of nesting"),
        ("<prompt schema='s'><a/><a/><a/>▲<a/></prompt>", "more than 3 modules"),
        (
            f"<prompt schema='s'>{'<user/>' * 7}▲<user/></prompt>",
            "more than 8 elements and texts",
        ),
        (
            "<prompt schema='s'><user/>x<user/>x<user/>x<![CDATA[x]]>▲x</prompt>",
            "more than 8 elements and texts",
        ),
        (
            "<prompt schema='s'><a a='' b='' c='' d='' e='' f='' g='' ▲h=''/></prompt>",
            "more than 8 attributes",
        ),
        ("▲" + "é" * 101, "the document has 202 bytes, more than 200"),
    ],
)
def test_limit(marked: str, message: str) -> None:
    assert_refused(partial(parse_prompt, limits=SMALL), marked, message, "")


def test_schema_and_prompt_within_the_limits() -> None:
    limits = Limits(max_depth=2, max_modules=2, max_nodes=4)
    parse_prompt("<prompt schema='s'>a<b p=''/>c</prompt>", limits=limits)
    parse_schema("<schema name='s'>a<module name='b'/><module name='c'/></schema>", limits=limits)


HOSTILE = {
    "nesting": ("", "<a>", ""),
    "modules": ("<schema name='s'>", "<module name='a'/>", ""),
    "params": ("<schema name='s'><module name='m'>", "<param name='p' len='1'/>", ""),
    "comments": ("<schema name='s'>", "<!---->", ""),
    "comments-and-spaces": ("<schema name='s'>", "<!----> ", ""),
    "cdata": ("<schema name='s'>", "<![CDATA[]]>", ""),
    "attributes": ("<schema ", "a='1' ", ">"),
    "attributes-and-junk": ("<schema", " a='1'", "&"),
    "open-comment": ("<schema>", "<!-- - ", ""),
    "spaces": ("<schema", " ", "&"),
    "blank": ("", " ", ""),
    "newlines": ("<schema name='s'>", "\n", "x"),
    "long-name": ("<", "a", "/>"),
    "open-name": ("<", "a", ""),
    "long-value": ("<schema a='", "a ", "<"),
    "many-ampersands": ("<schema name='s'>", "&a", "</schema>"),
    "long-entity": ("<schema name='s'>&", "a", "</schema>"),
    "long-number": (
        "<schema name='s'><module name='m'><param name='p' len='",
        "9",
        "'/></module></schema>",
    ),
    "less-than": ("<schema name='s'>", "<", ""),
    "closing-tags": ("<schema name='s'>", "</a>", ""),
    "brackets": ("<schema name='s'>", "]]", "&"),
    "nul": ("", "\0", ""),
}


@pytest.mark.parametrize(("start", "repeated", "end"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_document_is_refused_in_linear_time(start: str, repeated: str, end: str) -> None:
    text = start + repeated * (KIB_256 // len(repeated)) + end
    began = time.perf_counter()
    with pytest.raises(PMLError) as caught:
        parse_schema(text)
    # Quadratic behaviour would take much longer at this size.
    assert time.perf_counter() - began < 5
    assert len(str(caught.value)) < 1000


def test_refusal_needs_little_memory() -> None:
    text = "<a>" * KIB_256
    tracemalloc.start()
    with pytest.raises(PMLError, match="more than 64 levels"):
        parse_schema(text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * len(text)


def test_depth_at_the_default_limit_parses() -> None:
    opening = "".join(f'<module name="m{i}">' for i in range(63))
    parse_schema(f'<schema name="s">{opening}{"</module>" * 63}</schema>')
