"""Prompts together with their plans; what the planner refuses is made anew and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.generators.prompts import random_prompt
from tests.generators.schemas import Schema, random_schema

MAX_ATTEMPTS = 50


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt that the planner accepted.

    Attributes:
        pml: The prompt.
        explanation: `llm.explain(pml).to_dict()`.
    """

    pml: str
    explanation: dict[str, Any]


class CaseMaker:
    """Makes random schemas and prompts that are accepted.

    Args:
        seed: The same seed and the same planner give the same cases.
        explain: Returns the plan of a prompt as a dictionary.
        refusal: What `explain` and `add` raise where a document is refused.
        attended: How likely a prompt is to be repaired by attention, where it does not say
            anything else; which tokens that are, no plan can tell.
    """

    def __init__(
        self,
        seed: int,
        explain: Callable[[str], dict[str, Any]],
        refusal: type[Exception],
        attended: float = 0.0,
    ) -> None:
        self._rng = Random(seed)
        self._explain = explain
        self._refusal = refusal
        self._attended = attended
        self.refusals: Counter[str] = Counter()

    @property
    def num_refused(self) -> int:
        """Documents that were refused so far."""
        return self.refusals.total()

    def schema(self, name: str, add: Callable[[str], Any], **size: int) -> Schema:
        """Returns a random schema after `add` took its text; `size` as for `random_schema`."""
        return self._retry(lambda: self._added(random_schema(self._rng, name, **size), add))

    def prompt(self, schema: Schema) -> Case:
        """Returns a random prompt for a schema that was added."""
        return self._retry(lambda: self._explained(self._prompt(schema)))

    def _prompt(self, schema: Schema) -> str:
        pml = random_prompt(self._rng, schema)
        if self._rng.random() >= self._attended or " repair=" in pml.partition(">")[0]:
            return pml
        share = self._rng.randint(1, 100)
        return pml.replace("<prompt ", f'<prompt repair="query:{share}" ', 1)

    def _added(self, schema: Schema, add: Callable[[str], Any]) -> Schema:
        add(schema.pml)
        return schema

    def _explained(self, pml: str) -> Case:
        return Case(pml, self._explain(pml))

    def _retry(self, make: Callable[[], Any]) -> Any:
        for _ in range(MAX_ATTEMPTS):
            try:
                return make()
            except self._refusal as refused:
                self.refusals[str(refused).splitlines()[0]] += 1
        raise RuntimeError(f"nothing accepted in {MAX_ATTEMPTS} attempts: {self.refusals}")
