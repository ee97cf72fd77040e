"""The same tests with two classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


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
