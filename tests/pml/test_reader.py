"""The reader reads what the grammar accepts, and nothing else, to the same tree.

`conftest.py` compares both on the documents of all other tests here.
"""

from __future__ import annotations

import time
from random import Random

import pytest

from tests.generators import random_prompt, random_schema
from tests.pml.readers import agreed
from tests.pml.test_limits import HOSTILE
from vllm_promptcache.errors import PMLError
from vllm_promptcache.pml import DEFAULT_LIMITS, PROMPT_LIMITS, Limits, Source
from vllm_promptcache.pml.reader import read_well_formed
from vllm_promptcache.pml.source import read_source

MIB_8 = 2**23
WRITTEN = """<?xml version="1.0"?>
<!-- every kind of token --><!-- twice - -->
<prompt schema="s" encode='exact'>
  one &lt; &#8364;&#x41;<!-- c --> <![CDATA[ <two> ]]> \t
  <trip-plan duration = "three\n days" who='"A &amp; B"'><miami/> </trip-plan>
  <user xml:space="preserve"> <a>\n</a ><b xml:space="default"> é </b
  > </user><![CDATA[]]><!-- c --><c.d/>three
</prompt> <!-- end -->
"""
PIECES = (
    *("<", ">", "</", "/>", "<a>", "</a>", "<a/>", "<a b='1'", "<prompt>", "</prompt>", "<?xml "),
    *("<!--", "-->", "--", "-", "<![CDATA[", "]]>", "]", "&", "&amp;", "&#0;", "&#65;", ";", "?>"),
    *(" ", "\n", "\t", "\r", "\u00a0", "é", "'", '"', "=", " xml:space='preserve'", " a='1'", "x"),
)


OUTSIDE_OF_THE_ROOT = (
    *("", " ", "\u00a0", "x", "<!-- c -->", "<![CDATA[]]>", "<a/>", "<a>", "</a>", "&#32;"),
    *("<?xml version='1.0'?>", "<!----><?xml version='1.0'?>", " <?xml version='1.0'?>", "<?xml?>"),
)


def documents(rng: Random) -> list[str]:
    schemas = [random_schema(rng, "s", max_words=30) for _ in range(10)]
    prompts = [random_prompt(rng, schema) for schema in schemas for _ in range(3)]
    return [WRITTEN] * 20 + [schema.pml for schema in schemas] + prompts


def changed(rng: Random, text: str) -> str:
    """Takes something out of a document, puts something in, or swaps two parts of it."""
    start, middle, end = sorted(rng.randint(0, len(text)) for _ in range(3))
    near = min(start + rng.choice((1, 1, 2, 5)), len(text))
    piece = rng.choice(PIECES)
    return rng.choice(
        (
            text[:start] + text[near:],
            text[:start] + piece + text[start:],
            text[:start] + piece + text[near:],
            text[:start] + text[middle:end] + text[start:middle] + text[end:],
        )
    )


def check(text: str, limits: Limits) -> bool:
    """Whether a document is read, after reader and grammar have agreed on it."""
    try:
        source = read_source(text, "<test>", limits)
    except PMLError:
        return False
    return agreed(source, limits) is not None


@pytest.mark.parametrize("limits", [DEFAULT_LIMITS, PROMPT_LIMITS])
def test_valid_documents(limits: Limits) -> None:
    assert all(check(text, limits) for text in documents(Random(0)))


@pytest.mark.parametrize("seed", range(4))
def test_changed_documents(seed: int) -> None:
    rng, num_read = Random(seed), 0
    for text in documents(rng) * 15:
        for _ in range(rng.choice((1, 1, 2, 3))):
            text = changed(rng, text)
        num_read += check(text, PROMPT_LIMITS)
    assert num_read > 100, "too few are still well-formed"


@pytest.mark.parametrize("root", ["<a/>", "<a></a>", "<a>x</a>"])
@pytest.mark.parametrize("outside", OUTSIDE_OF_THE_ROOT)
def test_what_stands_outside_of_the_root(root: str, outside: str) -> None:
    for text in (outside + root, root + outside, outside, root[:3] + outside + root[3:]):
        check(text, DEFAULT_LIMITS)


def test_every_limit() -> None:
    source = read_source(WRITTEN, "<test>", DEFAULT_LIMITS)
    read = [
        agreed(source, Limits(max_depth=depth, max_modules=modules, max_nodes=nodes)) is not None
        for depth in range(1, 6)
        for modules in range(1, 8)
        for nodes in range(1, 40)
    ]
    assert any(read)
    assert not all(read)


@pytest.mark.parametrize(("start", "repeated", "end"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_document_is_read_in_linear_time(start: str, repeated: str, end: str) -> None:
    text = (start + repeated * (MIB_8 // len(repeated)))[: MIB_8 - 100] + end
    began = time.perf_counter()
    read_well_formed(Source("<test>", text), PROMPT_LIMITS)
    assert time.perf_counter() - began < 2
