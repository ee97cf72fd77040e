"""`make demo`: its output and its exit code."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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
