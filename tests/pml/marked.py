"""Checks a whole diagnostic against a source in which `▲` marks the place of the fault."""

from collections.abc import Callable

import pytest

from vllm_promptcache.errors import PMLError

MARK = "▲"


def assert_refused(parse: Callable[..., object], marked: str, message: str, hint: str) -> None:
    """Checks that parsing fails at the mark, with these words and the caret below the mark."""
    before, after = marked.split(MARK)
    line, column = before.count("\n") + 1, len(before.rpartition("\n")[2]) + 1
    source_line = (before + after).split("\n")[line - 1]
    with pytest.raises(PMLError) as caught:
        parse(before + after, name="test.pml")
    expected = f"test.pml:{line}:{column}: {message}\n{source_line}\n{' ' * (column - 1)}^"
    if hint:
        expected += f"\nhint: {hint}"
    assert str(caught.value) == expected, f"\n{caught.value}\ninstead of\n{expected}"
    assert (caught.value.line, caught.value.column) == (line, column)
