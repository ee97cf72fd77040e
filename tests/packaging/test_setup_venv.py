"""What `make setup` prints, with a Python that only pretends to install."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "packaging" / "setup-venv.sh"
# Stands for the interpreter and for the one in .venv; pip says as much as pip does.
PYTHON = """\
#!/usr/bin/env bash
case "$*" in
    "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *--dry-run*) exit 1 ;;
    "-m pip"*)
        for i in $(seq 300); do echo "Collecting package-$i of: $*"; done
        echo "ERROR: no space left" >&2
        exit "${PIP_RESULT:-0}" ;;
esac
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout that holds what set-up reads."""
    (tmp_path / "packaging").mkdir()
    shutil.copy(SCRIPT, tmp_path / "packaging")
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def run(tree: Path, *extras: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs set-up in `tree`."""
    env = os.environ | {"PYTHON": str(tree / "python"), "VLLM_BUILD": "cpu"} | variables
    command = [tree / "packaging" / SCRIPT.name, *extras]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("build", ["cpu", "cuda"])
def test_each_step_prints_a_line_and_the_log_has_the_rest(tree: Path, build: str) -> None:
    result = run(tree, VLLM_BUILD=build)
    lines = result.stdout.splitlines()
    assert result.returncode == 0
    assert result.stderr == ""
    assert len(lines) <= 5
    assert all(line.endswith(" s") for line in lines[:-1])
    assert lines[-1] == "Set-up is complete; its log is in .venv/setup.log"
    log = (tree / ".venv" / "setup.log").read_text()
    assert "package-1 of: -m pip" in log
    assert "--editable" in log


@pytest.mark.parametrize("build", ["cpu", "cuda"])
def test_extras_are_installed_with_the_rest(tree: Path, build: str) -> None:
    assert run(tree, "ray", "evaluate", VLLM_BUILD=build).returncode == 0
    assert "demo,dev,ray,evaluate]" in (tree / ".venv" / "setup.log").read_text()


def test_a_failure_shows_the_end_of_the_log_and_names_it(tree: Path) -> None:
    result = run(tree, PIP_RESULT="3")
    assert result.returncode == 1
    assert "Install vLLM (cpu build), this package and its tools ... failed" in result.stdout
    assert "    ERROR: no space left" in result.stdout
    assert len(result.stdout.splitlines()) < 25
    assert f"the whole log is in {tree}/.venv/setup.log" in result.stderr


def test_an_unknown_build_is_refused(tree: Path) -> None:
    result = run(tree, VLLM_BUILD="rocm")
    assert result.returncode == 1
    assert result.stderr == "error: VLLM_BUILD is 'rocm'; it may be cpu or cuda\n"
