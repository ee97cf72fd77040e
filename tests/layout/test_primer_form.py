"""The form of documents, read from modules, and the made-up text in it."""

from __future__ import annotations

import pytest

from vllm_promptcache.layout.primer_form import Form, forms, made_up
from vllm_promptcache.layout.primer_text import ARTICLES
from vllm_promptcache.pml import Location, Module, Text

END = "\n\n"


def found(*texts: str) -> list[Form | None]:
    """The forms of some modules, None for those without one."""
    place = Location(1, 1)
    modules = [
        Module(str(number), (Text(text, place),) if text else (), None, True, None, None, place)
        for number, text in enumerate(texts)
    ]
    of = forms(modules)
    return [of.get(module.name) for module in modules]


@pytest.mark.parametrize(
    ("texts", "form"),
    {
        "document": (
            ["Document 1:\nSome text.\n\n", "Document 27:\nMore text.\n\n"],
            Form("Document 0:\n", "\n", "\n\n"),
        ),
        "with-titles": (
            ["Document 1:\nSea\nIt is wide.\n\n", "Document 2:\nA river\nIt\nis long.\n\n"],
            Form("Document 0:\n", "\n", "\n\n"),
        ),
        "title-on-the-line": (
            [" Document 1: Sea\n\nIt is wide. ", " Document 2: A river\n\nIt is long. "],
            Form(" Document 0: ", "\n\n", " "),
        ),
        "brackets": (["[1] One.\n", "[2] Two.\n", "[10] Ten.\n"], Form("[0] ", "\n", "\n")),
        "list": (["1. One.", "2. Two."], Form("0. ", "\n", "")),
        "sections": (
            ["## 3.1: Sea\nIt is\n", "## 3.2: A river\nIt is\n"],
            Form("## 0: ", "\n", "\n"),
        ),
        "markup": (
            ['<doc id="1">\nOne.\n</doc>\n', '<doc id="2">\nTwo.\n</doc>\n'],
            Form('<doc id="0">\n', "\n", "</doc>\n"),
        ),
        "hashes": (
            ["# Sea\nIt is wide.\n\n", "# A river\nIt is long.\n\n"],
            Form("# ", "\n", "\n\n"),
        ),
        "label": (["Title: Sea\nIt.\n", "Title: A river\nIt.\n"], Form("Title: ", "\n", "\n")),
        "some-titles": (
            ["Source 1: Sea\nIt is wide.\n", "Source 2: It is long.\n"],
            Form("Source 0: ", "\n", "\n"),
        ),
        "ends-differ": (["[1] One.\n", "[2] Two."], Form("[0] ", "\n", END)),
    }.values(),
)
def test_what_modules_have_in_common(texts: list[str], form: Form) -> None:
    assert found(*texts) == [form] * len(texts)


@pytest.mark.parametrize(
    "texts",
    [
        ["Document 1:\nAlone."],
        ["Document 1:\nSame.", "Document 1:\nNumber."],
        ["Document 1:\nOne.", "Page 2:\nTwo."],
        ["In 1987 it rained.", "In 1990 it did not."],
        ["3 apples", "4 pears"],
        ["2024-01-05: rain", "2024-01-06: sun"],
        ["Note: no title follows.", "Note: here neither."],
        ["Some text.", "Some other text."],
        ["", ""],
        [],
    ],
)
def test_what_is_no_form(texts: list[str]) -> None:
    assert found(*texts) == [None] * len(texts)


def test_only_modules_with_the_heading_have_the_form() -> None:
    texts = ("Rules: be brief.", "Document 1:\na", "Page 1:\nb", "Document 2:\nc", "")
    form = Form("Document 0:\n", "\n", "")
    assert found(*texts) == [None, form, None, form, None]


def test_nothing_is_taken_but_the_heading() -> None:
    texts = [f"Document {number}:\nSecret {number}\nThe secret text.\n\n" for number in (7, 8)]
    (form, _) = found(*texts)
    assert form is not None
    written = "".join(made_up(form))
    assert "ecret" not in written
    assert "7" not in form.heading + form.end


def test_the_text_in_a_form_is_the_text_with_headings_and_titles() -> None:
    plain, form = list(made_up(None)), Form("Document 0:\n", "\n", "</doc>")
    assert "".join(plain) == "".join(f"{article.text}\n\n" for article in ARTICLES)
    in_form = list(made_up(form))
    assert len(in_form) == len(plain)
    assert "".join(in_form) == "".join(
        f"Document {number}:\n{article.title}\n{article.text}</doc>"
        for number, article in enumerate(ARTICLES, start=1)
    )


@pytest.mark.parametrize(
    "text", ["a" * 10**6, " " * 10**6, "a (" * 10**5, "[" * 10**6, "1." * 10**5]
)
def test_hostile_beginnings_take_no_time(text: str) -> None:
    assert found(text, text) == [None, None]
