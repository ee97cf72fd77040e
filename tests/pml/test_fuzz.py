"""Any input yields a tree or a `PMLError`; a tree that is printed parses to the same tree."""

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pml.dump import without_places
from tests.pml.printer import print_prompt, print_schema
from tests.pml.trees import prompts, schemas
from vllm_promptcache.errors import PMLError
from vllm_promptcache.pml import Prompt, Schema, Text, is_prompt, parse_prompt, parse_schema

TAGS = ["<prompt schema='s'>", "</prompt>", "<schema name='s'>", "</schema>", "<union>", "</union>"]
PARTS = ["<module", "</module>", "<param name='p' len='1'/>", "<user>", "</user>", "<a", "<", ">"]
ATTRIBUTES = [" name='m'", " src='x'", " xml:space='preserve'", " ", "=", "'", '"', "/>"]
TEXT = [
    "text",
    "&",
    "&lt;",
    "&#",
    "0;",
    "<!--",
    "-->",
    "--",
    "<![CDATA[",
    "]]>",
    "<?xml",
    "?>",
    "<!",
]
FRAGMENTS = st.sampled_from([*TAGS, *PARTS, *ATTRIBUTES, *TEXT])
DOCUMENTS = [
    path.read_text(encoding="utf-8") for path in (Path(__file__).parent / "golden").glob("*.pml")
]


def parse_both(text: str) -> None:
    """Only `PMLError` may come out, with a place that lies in the text."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for parse in (parse_schema, parse_prompt):
        if error := error_of(parse, text):
            assert 1 <= error.column <= len(lines[error.line - 1]) + 1
            assert 0 <= error.caret <= len(error.source_line)
    is_prompt(text)


def error_of(parse: Callable[[str], object], text: str) -> PMLError | None:
    try:
        parse(text)
    except PMLError as error:
        return error
    return None


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_any_text(text: str) -> None:
    parse_both(text)


@settings(max_examples=200, deadline=None)
@given(st.lists(FRAGMENTS | st.text(max_size=3), max_size=25))
def test_any_fragments(fragments: list[str]) -> None:
    parse_both("".join(fragments))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(DOCUMENTS), st.data())
def test_any_change_to_a_document(document: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(document)))
    end = data.draw(st.integers(start, min(start + 10, len(document))))
    parse_both(document[:start] + data.draw(FRAGMENTS | st.just("")) + document[end:])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*TEXT, " ", "'", "a", "<a/>", "<a b='", "'/>"]), max_size=12))
def test_what_is_accepted_is_xml_with_the_same_text(fragments: list[str]) -> None:
    document = f"<prompt schema='s' xml:space='preserve'>x{''.join(fragments)}</prompt>"
    if error_of(parse_prompt, document) is None:
        children = parse_prompt(document).children
        text = "".join(child.text for child in children if isinstance(child, Text))
        assert text == "".join(ElementTree.fromstring(document).itertext())


@settings(max_examples=80, deadline=None)
@given(schemas())
def test_schema_round_trip(schema: Schema) -> None:
    assert without_places(parse_schema(print_schema(schema))) == without_places(schema)


@settings(max_examples=80, deadline=None)
@given(prompts())
def test_prompt_round_trip(prompt: Prompt) -> None:
    printed = print_prompt(prompt)
    assert is_prompt(printed)
    assert without_places(parse_prompt(printed)) == without_places(prompt)
