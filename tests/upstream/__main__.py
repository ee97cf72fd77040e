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
from collections.abc import Collection, Mapping
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
class Run:
    """What became of the tests with one class.

    Attributes:
        outcomes: Outcome by test, as pytest calls it.
        making: Tests that made a scheduler of the class.
    """

    outcomes: Mapping[str, str]
    making: Collection[str]

    def has_passed(self, test: str) -> bool:
        """Whether a test was run and passed."""
        return self.outcomes.get(test) == "passed"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The tests with vLLM's class and with ours.

    Attributes:
        theirs: With vLLM's class.
        ours: With ours.
        excluded: Tests that are not meant for ours.
    """

    theirs: Run
    ours: Run
    excluded: frozenset[str]

    @property
    def failed(self) -> list[str]:
        """Tests that vLLM's class passes and ours does not, though it should."""
        tests = [t for t in self.theirs.outcomes if self.theirs.has_passed(t)]
        return [t for t in tests if not self.ours.has_passed(t) and not self._is_excluded(t)]

    def _is_excluded(self, test: str) -> bool:
        return test in self.excluded or test.partition("[")[0] in self.excluded

    def report(self) -> str:
        """The counts, all and of those that make a scheduler, and the names of what failed."""
        every = self._counts(self.theirs.outcomes)
        making = self._counts(self.theirs.making)
        return "\n    FAILED ".join([f"all: {every}\n  make a scheduler: {making}", *self.failed])

    def _counts(self, tests: Collection[str]) -> str:
        passed = {test for test in tests if self.theirs.has_passed(test)}
        meant = {test for test in passed if not self._is_excluded(test)}
        num_ours = sum(map(self.ours.has_passed, meant))
        return (
            f"{len(tests)} tests, vLLM's class passes {len(passed)}, ours {num_ours}, "
            f"{len(meant) - num_ours} failed, {len(passed) - len(meant)} excluded"
        )


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
        subprocess.run(command, cwd=root, env=environment, stdout=output, stderr=output)
        if not result.exists():
            raise SystemExit(f"pytest did not end: see {log}")
        return Run(**json.loads(result.read_text()))


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
