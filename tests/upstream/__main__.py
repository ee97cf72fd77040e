"""Runs vLLM's tests of its scheduler with its own class and with ours, and compares.

    python -m tests.upstream

Ends with 0 only if ours passes whatever vLLM's passes, but for what `exclusions.toml` lists.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from tests.upstream.comparison import Comparison, Run
from tests.upstream.source import vllm_tests
from vllm_promptcache.models import embedded_model

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
# For vLLM's tests, and what pytest says of each run.
FOLDER = REPOSITORY / "build" / "upstream"
# As the tests were written, then with the asynchronous class wherever they take the synchronous.
SCHEDULINGS = ("as written", "async")
# Tests were run, and all have passed or some failed.
ENDED = (0, 1)
MAKES_A_SCHEDULER = ("create_scheduler(", " Scheduler(")


def run(root: Path, scheduler: str, scheduling: str) -> Run:
    """Runs the tests under `root` that speak of a scheduler, in a process of their own."""
    files = [path for path in sorted((root / "tests/v1/core").rglob("test_*.py")) if _is_for(path)]
    log = root / f"{scheduler}-{scheduling.replace(' ', '-')}.log"
    with tempfile.TemporaryDirectory() as folder, log.open("w") as output:
        result = Path(folder) / "outcomes.json"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(HERE), str(REPOSITORY)]),
            "HF_HUB_OFFLINE": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "UPSTREAM_MODEL": str(embedded_model()),
            "UPSTREAM_OUTCOMES": str(result),
            "UPSTREAM_SCHEDULER": scheduler,
            "UPSTREAM_SCHEDULING": scheduling,
        }
        options = ["-p", "put_in", "-p", "no:cacheprovider", "-q", "--tb=line", *map(str, files)]
        command = [sys.executable, "-m", "pytest", *options]
        ended = subprocess.run(command, cwd=root, env=environment, stdout=output, stderr=output)
        if ended.returncode not in ENDED:
            raise SystemExit(f"the tests were not run: see {log}")
        return Run(**json.loads(result.read_text()))


def _is_for(path: Path) -> bool:
    text = path.read_text()
    return any(made in text for made in MAKES_A_SCHEDULER)


def main() -> int:
    """Returns how the process ends: 0 if all is as it should be."""
    root = vllm_tests(FOLDER)
    exclusions = tomllib.loads((HERE / "exclusions.toml").read_text())["exclusion"]
    excluded = frozenset(test for exclusion in exclusions for test in exclusion["tests"])
    has_failed = False
    for scheduling in SCHEDULINGS:
        theirs, ours = (run(root, scheduler, scheduling) for scheduler in ("vllm", "ours"))
        comparison = Comparison(theirs, ours, excluded)
        print(f"{scheduling}\n  {comparison.report()}", flush=True)
        has_failed = has_failed or bool(comparison.failed)
    print(f"Excluded, in {HERE / 'exclusions.toml'}:")
    for exclusion in exclusions:
        print(f"- {exclusion['reason']}: {', '.join(exclusion['tests'])}")
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
