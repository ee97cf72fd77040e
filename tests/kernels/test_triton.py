"""Triton kernels, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_triton_kernels_agree_with_plain_torch_under_the_interpreter():
    # Triton looks at the variable when it is imported, and stays interpreted from then on.
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", Path(__file__).parent / "interpreted.py"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
