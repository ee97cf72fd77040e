"""Runs vLLM's tests of its scheduler with its own class and with ours, and compares.

    python -m tests.upstream [--folder FOLDER]

Ends with 0 only if ours passes whatever vLLM's passes, but for what `exclusions.toml` lists.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.upstream.source import vllm_tests
from vllm_promptcache.models import embedded_model

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
FOLDER = REPOSITORY / "build" / "upstream"
# As the tests were written, then with the asynchronous class wherever they take the synchronous.
SCHEDULINGS = ("as written", "async")
MAKES_A_SCHEDULER = ("create_scheduler(", " Scheduler(")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What became of the tests that make a scheduler.

    Attributes:
        scheduling: One of `SCHEDULINGS`.
        theirs: Test -> outcome with vLLM's class.
        ours: The same with ours.
        excluded: Tests that are not meant for ours.
    """

    scheduling: str
    theirs: Mapping[str, str]
    ours: Mapping[str, str]
    excluded: frozenset[str]

    @property
    def failed(self) -> list[str]:
        """Tests that vLLM's class passes and ours does not, though it should."""
        passed = [test for test, outcome in self.theirs.items() if outcome == "passed"]
        return [t for t in passed if self.ours.get(t) != "passed" and not self._is_excluded(t)]

    def _is_excluded(self, test: str) -> bool:
        return test in self.excluded or test.partition("[")[0] in self.excluded

    def report(self) -> str:
        """The counts, and the names of those that should have passed."""
        passed = {test for test, outcome in self.theirs.items() if outcome == "passed"}
        excluded = {test for test in passed if self._is_excluded(test)}
        num_ours = sum(self.ours.get(test) == "passed" for test in passed - excluded)
        counts = (
            f"{self.scheduling}: {len(self.theirs)} tests make a scheduler; vLLM's class passes "
            f"{len(passed)}; of these, ours passes {num_ours}, {len(self.failed)} fail, "
            f"{len(excluded)} are excluded"
        )
        return "\n  FAILED ".join([counts, *self.failed])


def outcomes(root: Path, scheduler: str, scheduling: str) -> dict[str, str]:
    """Runs the tests under `root` in a process of their own; returns the outcome of each.

    Only of those that make a scheduler: others say nothing of it.
    """
    files = [path for path in sorted((root / "tests/v1/core").rglob("test_*.py")) if _is_for(path)]
    with tempfile.TemporaryDirectory() as folder:
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
        with (root / f"{scheduler}-{scheduling.replace(' ', '-')}.log").open("w") as log:
            subprocess.run(
                [sys.executable, "-m", "pytest", *options],
                cwd=root,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if not result.exists():
            raise SystemExit(f"pytest did not end: see {log.name}")
        found: dict[str, str] = json.loads(result.read_text())
    return found


def _is_for(path: Path) -> bool:
    text = path.read_text()
    return any(made in text for made in MAKES_A_SCHEDULER)


def main() -> int:
    """Returns how the process ends: 0 if all is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for vLLM's tests, and logs")
    root = vllm_tests(parser.parse_args().folder.resolve())
    exclusions = tomllib.loads((HERE / "exclusions.toml").read_text())["exclusion"]
    excluded = frozenset(test for exclusion in exclusions for test in exclusion["tests"])
    has_failed = False
    for scheduling in SCHEDULINGS:
        theirs, ours = (outcomes(root, scheduler, scheduling) for scheduler in ("vllm", "ours"))
        comparison = Comparison(scheduling, theirs, ours, excluded)
        print(comparison.report(), flush=True)
        has_failed = has_failed or bool(comparison.failed)
    print(f"Excluded, in {HERE / 'exclusions.toml'}:")
    for exclusion in exclusions:
        print(f"- {exclusion['reason']}: {', '.join(exclusion['tests'])}")
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
