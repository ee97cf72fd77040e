"""The self-test of whoever has other hardware, on this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.environment import prepare_environment

prepare_environment()

from vllm_promptcache.selftest.engine import (  # noqa: E402
    EngineOptions,
    EngineReport,
    run_engine,
)
from vllm_promptcache.selftest.report import check_engines  # noqa: E402
from vllm_promptcache.worker.positions import Positions  # noqa: E402


@pytest.fixture(scope="module")
def options(shallow: Path) -> EngineOptions:
    return EngineOptions(str(shallow), "float32", is_eager=True, kv_cache_bytes=256 << 20)


@pytest.fixture(scope="module")
def report(options: EngineOptions) -> EngineReport:
    return run_engine(options)


def test_all_is_right_here(report: EngineReport) -> None:
    again = EngineReport.from_json(report.to_json())
    checks = list(check_engines([report, again]))
    assert {check.group for check in checks} == {"exact", "moved", "between", "repaired"}
    assert [check for check in checks if not check.has_passed] == []
    assert all(check.distance.num_equal == check.distance.num_answers for check in checks)


def test_positions_that_are_not_moved_are_found(
    report: EngineReport, options: EngineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Positions, "offsets", lambda *_: None)
    checks = list(check_engines([report, run_engine(options)]))
    wrong = {(check.group, check.what) for check in checks if not check.has_passed}
    assert wrong >= {("between", "modules to the first engine's")}
