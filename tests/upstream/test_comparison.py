"""What counts as a failure of ours."""

from __future__ import annotations

from tests.upstream.comparison import Comparison, Run

TESTS = ("t.py::a", "t.py::b[1]", "t.py::b[2]", "t.py::c", "t.py::d")


def compared(excluded: frozenset[str]) -> Comparison:
    theirs = dict.fromkeys(TESTS, "passed") | {"t.py::c": "failed"}
    ours = dict.fromkeys(TESTS[:4], "failed") | {"t.py::a": "passed"}
    return Comparison(Run(theirs, TESTS), Run(ours, TESTS), excluded)


def test_ours_has_to_pass_what_theirs_passes() -> None:
    comparison = compared(frozenset())
    assert comparison.failed == ["t.py::b[1]", "t.py::b[2]", "t.py::d"]
    assert "5 tests, vLLM's class passes 4, ours 1, 3 failed, 0 excluded" in comparison.report()


def test_a_case_or_all_cases_are_excluded() -> None:
    assert compared(frozenset({"t.py::b[2]"})).failed == ["t.py::b[1]", "t.py::d"]
    assert compared(frozenset({"t.py::b"})).failed == ["t.py::d"]
