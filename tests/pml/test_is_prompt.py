import time

import pytest

from vllm_promptcache.pml import is_prompt


@pytest.mark.parametrize(
    "text",
    [
        "<prompt>",
        '<prompt schema="s"/>',
        "<prompt/>",
        "<prompt\nschema='s'>",
        "<prompt\rschema='s'>",
        " \r\n\t<prompt>",
        "\ufeff<prompt>",
        '<?xml version="1.0"?><prompt>',
        '<?xml version="1.0"?>\n<!-- a --><!-- b -->\n<prompt>',
        "<!-- malformed -- comment --><prompt>",
        "<prompt schema=oops",
    ],
)
def test_prompt(text: str) -> None:
    assert is_prompt(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "<prompt",
        "<prompts>",
        "<prompt-x/>",
        "<Prompt>",
        "What does <prompt > mean?",
        "<schema name='s'/>",
        "<!-- <prompt> -->",
        "<!-- never closed <prompt>",
        "< prompt>",
        "<?php ?><prompt>",
        "&lt;prompt>",
    ],
)
def test_no_prompt(text: str) -> None:
    assert not is_prompt(text)


@pytest.mark.parametrize("start", [" ", "<!-- -->", "<!-- ", "<?xml >", " <!---->"])
def test_time_is_linear(start: str) -> None:
    began = time.perf_counter()
    assert not is_prompt(start * 100_000 + "x")
    assert time.perf_counter() - began < 1
