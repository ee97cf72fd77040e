"""Text nodes: the white space rule, CDATA, references and comments."""

import pytest

from vllm_promptcache.pml import Location, Module, Text, parse_prompt, parse_schema


def texts(content: str) -> list[str]:
    prompt = parse_prompt(f'<prompt schema="s"><a/>{content}<a/></prompt>')
    return [child.text for child in prompt.children if isinstance(child, Text)]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("word", "word"),
        (" \n\t word \n ", " word "),
        ("a \n  b", "a \n  b"),
        ("\u00a0word\u3000", "\u00a0word\u3000"),
        ("a<!-- c -->b", "ab"),
        ("a <!-- c --> b", "a  b"),
        (" <!-- c --> b <!-- c --> ", " b "),
        ("<!-- - -->b", "b"),
        ("<![CDATA[ a < b && c ]]>", " a < b && c "),
        ("<![CDATA[]]>", None),
        ("<![CDATA[ ]]>", " "),
        (" <![CDATA[ ]]> ", "   "),
        ("a<![CDATA[]]>  ", "a "),
        ("<![CDATA[a]]]]><![CDATA[>]]>", "a]]>"),
        ("&lt;&gt;&amp;&quot;&apos;", "<>&\"'"),
        ("&amp;lt;", "&lt;"),
        ("&#65;&#x42;&#x1F600;&#0000067;", "AB\U0001f600C"),
        ("\n&#32;&#10;a&#9;\n", "  \na\t "),
        ("&#13;", "\r"),
        (" \n ", None),
        (" <!-- c --> ", None),
        ('"quotes" > = /', '"quotes" > = /'),
    ],
)
def test_content(content: str, text: str | None) -> None:
    assert texts(content) == ([] if text is None else [text])


def test_text_stays_between_imports() -> None:
    """The paper's prototype drops it."""
    assert texts("one<b/>two") == ["one", "two"]


def test_preserve_keeps_white_space_and_is_inherited() -> None:
    (outer,) = parse_schema(
        '<schema name="s"><module name="a" xml:space="preserve"> \n'
        '<module name="b">  x  </module>'
        '<module name="c" xml:space="default">  y  </module></module></schema>'
    ).children
    assert isinstance(outer, Module)
    blank, kept, collapsed = outer.children
    assert blank == Text(" \n", Location(1, 56))
    assert isinstance(kept, Module)
    assert isinstance(collapsed, Module)
    assert [child.text for child in (*kept.children, *collapsed.children)] == ["  x  ", " y "]


def test_preserve_gives_no_text_to_elements_that_hold_none() -> None:
    schema = parse_schema(
        '<schema name="s" xml:space="preserve"><module name="m"><param name="p" len="1"> </param>'
        '<union>\n<module name="a"/>\n</union></module><module name="n"/>'
        '<scaffold modules="m n">\n</scaffold></schema>'
    )
    assert len(schema.children) == 2


def test_location_is_the_first_character_of_the_content() -> None:
    prompt = parse_prompt('<prompt schema="s">\n <!-- c -->\n  text <![CDATA[x]]></prompt>')
    assert prompt.children == (Text(" text x", Location(3, 3)),)
