import pickle

import pytest

from vllm_promptcache.errors import (
    ClientError,
    ModelError,
    PlanError,
    PMLError,
    PromptCacheError,
    ServerError,
    UnsupportedError,
)
from vllm_promptcache.pml import Location, Source, diagnostics, did_you_mean, pml_error, quote


def test_error_reads_as_place_line_caret_hint() -> None:
    error = pml_error(Source("a.pml", "one\n\ttwo three"), Location(2, 6), "bad word", "mend it")
    assert str(error) == "a.pml:2:6: bad word\n\ttwo three\n\t    ^\nhint: mend it"


def test_caret_at_the_end_of_the_document() -> None:
    error = pml_error(Source("a.pml", "one\n"), Location(2, 1), "too short")
    assert str(error) == "a.pml:2:1: too short\n\n^"


@pytest.mark.parametrize("column", [1, 50, 60, 61, 500, 940, 1000, 1001])
def test_long_line_is_cut_around_the_caret(column: int) -> None:
    text = "".join(chr(ord("A") + i % 53) for i in range(1000))
    error = pml_error(Source("a.pml", f"\n{text}\n"), Location(2, column), "here")
    assert len(error.source_line) <= 126
    around = slice(max(0, column - 6), column + 5)
    assert text[around] in error.source_line
    assert error.source_line[error.caret : error.caret + 1] in (text[column - 1 : column], "")


@pytest.mark.parametrize(
    "error",
    [
        PromptCacheError("what"),
        PlanError("what", "how to mend it"),
        UnsupportedError("what"),
        ModelError("what", "how to mend it"),
        PMLError("what", "a.pml", 1, 3, "a b", 2, "how to mend it"),
    ],
)
def test_errors_can_be_pickled(error: PromptCacheError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_two_branches() -> None:
    assert issubclass(PMLError, ClientError)
    assert issubclass(ClientError, ValueError)
    assert issubclass(ModelError, ServerError)
    assert not issubclass(ServerError, ClientError)


def test_did_you_mean() -> None:
    assert did_you_mean("miame", ["maui", "miami"]) == "did you mean `miami`?"
    assert did_you_mean("paris", ["maui", "miami"]) is None
    assert did_you_mean("a" * 10_000, ["a" * 10_000]) is None


def test_quote_is_short_and_on_one_line() -> None:
    assert quote("a\n b") == "`a b`"
    assert len(quote("a" * 1000)) == 62


@pytest.mark.parametrize("stretch", [1, 2, 7, 65_536])
def test_the_line_of_an_error_is_found_in_long_documents(
    stretch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnostics, "_STRETCH", stretch)
    lines = ["", "one", "", "", "two and more", "three", ""]
    source = Source("a.pml", "\n".join(lines))
    for number, line in enumerate(lines, start=1):
        assert pml_error(source, Location(number, 1), "what").source_line == line
