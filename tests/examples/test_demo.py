"""`make demo`: its output and its exit code."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import cpus
from vllm_promptcache.errors import ModelError
from vllm_promptcache.examples import SCHEMAS, demo, prompt_paths


def test_failure_is_an_exit_code_and_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ModelError("no room", "make some")

    monkeypatch.setattr(demo.os, "environ", {**os.environ, "VLLM_LOGGING_LEVEL": "INFO"})
    monkeypatch.setattr(demo, "embedded_model", fail)
    assert demo.main() == 1
    assert capsys.readouterr().err == "error: the demo failed: no room\nhint: make some\n"


@pytest.mark.engine
@pytest.mark.slow
def test_the_demo_runs_all_prompts() -> None:
    command = [sys.executable, "-m", "vllm_promptcache.examples.demo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    summary = done.stdout.partition("Summary")[2]
    for path in (path for name in SCHEMAS for path in prompt_paths(name)):
        assert f"{path.parent.name}: {path.stem.partition('-')[2]}" in summary


def test_the_engine_gets_the_type_that_is_fast_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU that emulates bfloat16 the demo would take many minutes."""
    given: dict[str, object] = {}

    class Engine:
        def __init__(self, model: str, **options: object) -> None:
            given.update(options)

        def generate(self, *args: object, **options: object) -> None:
            """Nothing is generated."""

    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    monkeypatch.setattr("vllm_promptcache.LLM", Engine)
    cpus.pretend(monkeypatch, cpus.AVX2, is_cpu=True)
    demo.start_engine("model")
    assert given["dtype"] == "float32"
