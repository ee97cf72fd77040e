import time

import pytest

from vllm_promptcache.pml import is_prompt


@pytest.mark.parametrize(
    "text",
    [
        '<prompt schema="s">',
        '<prompt schema="s"/>',
        "<prompt\nschema='s'>",
        "<prompt\rschema = 's'>",
        ' \r\n\t<prompt schema="s">',
        '\ufeff<prompt schema="s">',
        '<?xml version="1.0"?><prompt schema="s">',
        '<?xml version="1.0"?>\n<!-- a --><!-- <prompt> -->\n<prompt encode="exact" schema="s"/>',
        '<prompt note="a > b" schema="s">',
        '<prompt note=\'"\' schema="s">',
        '<prompt schemas="a" schema="b">',
        "<prompt><module>x</module></prompt>",
        '<prompt encode="exact"><user><module name="a">x</module></user> y </prompt >\n',
        "<prompt ><module>never closed</prompt>",
    ],
)
def test_prompt(text: str) -> None:
    assert is_prompt(text)


@pytest.mark.parametrize(
    "text",
    [
        '<!-- malformed -- comment --><prompt schema="s">',
        "<prompt schema=oops",
        "<prompt schema=",
        '<prompt schema="never closed',
        '<prompt exact schema="s">',
        '<prompt encode="exact"schema="s">',
        '<prompt encode="exact schema="s"><a x="1"/></prompt>',
        '<prompt encode="exact schema=s>',
        '<prompt note="<b>" schema="s">',
        '<prompt <b schema="s">',
        '<prompt / schema="s">',
    ],
)
def test_a_malformed_prompt(text: str) -> None:
    assert is_prompt(text)


@pytest.mark.parametrize(
    "text",
    [
        "<prompt>Fix my text</prompt>",
        "<prompt/>",
        '<prompt version="1.2">',
        "<prompt\n>",
        '<prompt><a schema="s"/></prompt>',
        "<prompt note=\"schema='s'\">",
        "<prompt note=' schema=\"s\"' >",
        '<prompt data-schema="s">',
        '<prompt x:schema="s">',
        '<prompt schemas="s">',
        '<prompt SCHEMA="s">',
        "<prompt schema>",
        "<prompt schema",
        '<prompt\u00a0schema="s">',
        '<prompt note="never closed>',
        '<prompt, schema="s">',
        "<prompt>Which <modules> are there?</prompt>",
        "<prompt><module>x</module></prompt> Explain this.",
    ],
)
def test_a_tag_of_the_users_own(text: str) -> None:
    assert not is_prompt(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "<prompt",
        '<prompts schema="s">',
        '<prompt-x schema="s"/>',
        '<Prompt schema="s">',
        'What does <prompt schema="s"> mean?',
        "<schema name='s'/>",
        '<!-- <prompt schema="s"> -->',
        '<!-- never closed <prompt schema="s">',
        '< prompt schema="s">',
        '<?php ?><prompt schema="s">',
        '&lt;prompt schema="s">',
    ],
)
def test_no_prompt(text: str) -> None:
    assert not is_prompt(text)


@pytest.mark.parametrize(
    ("start", "repeated"),
    [
        ("", " "),
        ("", "<!-- -->"),
        ("", "<!-- "),
        ("", "<?xml >"),
        ("", " <!---->"),
        ("<prompt ", 'a="b" '),
        ("<prompt ", 'a="<" '),
        ("<prompt ", "schema "),
        ("<prompt ", "a"),
        ("<prompt ", "'\""),
        ("<prompt '", " schema"),
        ('<prompt "', " <"),
        ("<prompt><module>", "</prompt> "),
        ("<prompt>", "<module></prompt "),
    ],
)
def test_time_is_linear(start: str, repeated: str) -> None:
    began = time.perf_counter()
    assert not is_prompt(start + repeated * 100_000 + "x")
    assert time.perf_counter() - began < 1


def test_only_the_beginning_of_a_text_is_looked_at() -> None:
    """A text of comments alone would take long, and every text is looked at."""
    assert is_prompt("<!--x-->" * 20_000 + '<prompt schema="s">')
    assert not is_prompt("<!--x-->" * 50_000 + '<prompt schema="s">')
