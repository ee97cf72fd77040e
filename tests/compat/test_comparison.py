"""The report on another vLLM, and that our code takes what it says is answered."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.core.sched.scheduler import Scheduler

from tests.compat.trees import write
from vllm_promptcache.compat import __main__ as command
from vllm_promptcache.compat import comparison
from vllm_promptcache.compat.names import RELIANCES, Reliance
from vllm_promptcache.compat.source import Source
from vllm_promptcache.core.scheduler import PromptModuleMixin

OLD = """
class Pool:
    size: int
    def get(self, num):
        return 1
    def put(self): ...
"""


@pytest.fixture
def report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Compares a changed module with `OLD`; gives the exit code and the report."""
    monkeypatch.setattr(comparison, "ANSWERS", {"vllm.pool.Pool.get": (("+limit = 0",), "so")})
    reliance = Reliance((), {"vllm.pool": "Pool"}, "pool", "get put size", ("vllm.pool:Pool",))
    compare = comparison.compare
    monkeypatch.setattr(command, "compare", lambda new, old: compare(new, old, [reliance]))

    def run(pool: str) -> tuple[int, str]:
        for name, text in (("old", OLD), ("new", pool)):
            write(tmp_path / name, {"__init__": "", "pool": text})
        sources = [f"--source={tmp_path / name}" for name in ("new", "old")]
        return command.main(sources), capsys.readouterr().out

    return run


def test_the_same_passes_and_other_code_is_counted(report: Any) -> None:
    assert report(OLD)[0] == 0
    code, text = report(OLD.replace("return 1", "return 2  # why"))
    assert code == 0
    assert "same signature: 4, of these 2 with other code behind it" in text
    assert "changed: 0\nmissing: 0\n" in text


def test_a_missing_name_fails(report: Any) -> None:
    code, text = report(OLD.replace("put", "gone"))
    assert code == 1
    assert "missing: 1\n  vllm.pool.Pool.put\n" in text


def test_a_changed_signature_fails_and_both_are_shown(report: Any) -> None:
    code, text = report(OLD.replace("(self, num)", "(self, num, *, limit)"))
    assert code == 1
    assert "changed: 1\n  vllm.pool.Pool.get\n" in text
    assert "old: self, num\n" in text
    assert "new: self, num, *, limit\n    NOT ANSWERED\n" in text


def test_an_answered_change_passes_and_no_other_of_that_name_does(report: Any) -> None:
    assert report(OLD.replace("(self, num)", "(self, num, limit=0)"))[0] == 0
    assert report(OLD.replace("(self, num)", "(self, num, limit=0, more=0)"))[0] == 1
    assert report(OLD.replace("(self, num)", "(self, limit=0)"))[0] == 1
    assert report(OLD.replace("get", "gone"))[0] == 1


def test_a_folder_without_vllm_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(["--source", str(tmp_path)])
    assert f"{tmp_path} holds no package vllm; name the folder above it" in capsys.readouterr().err


def test_all_names_are_found_in_the_source_of_this_vllm() -> None:
    this = Source.installed()
    missing = [
        (owner, path)
        for reliance in RELIANCES
        for owner, path in reliance.wanted()
        if this.find(owner, path) is None
    ]
    assert missing == []


def test_objects_are_looked_for_by_their_classes() -> None:
    assert [
        reliance.owner for reliance in RELIANCES if reliance.owner and not reliance.classes
    ] == []


class _Before(Scheduler):
    def _get_local_prefix_cache_hit(self, request: Any) -> Any:
        return (request,)


class _Since33(Scheduler):
    def _get_local_prefix_cache_hit(
        self, request: Any, max_cache_hit_length: int | None = None
    ) -> Any:
        return request, max_cache_hit_length


@pytest.mark.parametrize(("base", "limit"), [(_Before, ()), (_Since33, (64,))])
def test_the_scheduler_takes_the_limit_of_a_prefix_hit(base: Any, limit: tuple[int, ...]) -> None:
    """vLLM 0.33 passes it by place."""
    scheduler: Any = object.__new__(type("Ours", (PromptModuleMixin, base), {}))
    scheduler.residency = SimpleNamespace(get=lambda request: None)
    assert scheduler._get_local_prefix_cache_hit("plain", *limit) == ("plain", *limit)
    manager = SimpleNamespace(create_kv_cache_blocks=lambda blocks: blocks)
    scheduler.kv_cache_manager, scheduler.block_size = manager, 32
    scheduler.residency = SimpleNamespace(get=lambda request: request, map=lambda modular: ["b"])
    hit = scheduler._get_local_prefix_cache_hit("modular", *limit)
    assert hit == ((["b"],), 32, 0, False)
