"""Engines that are killed while they write modules to disk; see `crash.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

NUM_KILLS = 5
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_killed_engine_leaves_nothing_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    # A process of its own: it forks, which it may not do where an engine has run.
    command = [sys.executable, "-m", "tests.engine.crash", "--kills", str(NUM_KILLS)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    summary = (run.stdout.splitlines() or [""])[-1]
    with capsys.disabled():
        print(f"\n{summary}")
    assert run.returncode == 0, run.stdout + run.stderr[-4000:]
    assert f"{NUM_KILLS} restarts that worked" in summary
    assert ", 0 wrong answers" in summary
