"""A prompt as the engine gets it: its tokens in the order of reading, and its plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllm_promptcache.errors import PlanError
from vllm_promptcache.sequence.codec import PackedModule, Plan, Recipe, unpack_recipe
from vllm_promptcache.sequence.placed_tokens import PlacedTokens
from vllm_promptcache.sequence.runs import Run, count
from vllm_promptcache.sequence.spans import ModuleSpan, Relocation, SequencePlan
from vllm_promptcache.sequence.spec import ModuleSpec


@dataclass(frozen=True, slots=True, eq=False)
class ModulePrompt:
    """Says how each module that a prompt reads is encoded.

    Attributes:
        plan: What is asked for.
        tokens: The prompt's tokens.
        modules: The plan's modules by key.
        relocations: Modules at other places than their schema has them, by their keys there.
        places: Where the prompt has the kept tokens of a module, by the key in its schema.
        links: The number of each link of the plan's chain, by key.
    """

    plan: Plan
    tokens: PlacedTokens
    modules: Mapping[bytes, PackedModule]
    relocations: Mapping[bytes, Relocation]
    places: Mapping[bytes, tuple[Run, ...]]
    links: Mapping[bytes, int]

    @staticmethod
    def of(plan: Plan, token_ids: Sequence[int]) -> ModulePrompt:
        """A prompt of these tokens, which fit the plan."""
        relocations = {found.key: found for found in plan.relocations}

        places = {_origin(span.key, relocations): span.positions for span in plan.spans}
        return ModulePrompt(
            plan,
            PlacedTokens.of(token_ids, plan.positions),
            {module.key: module for module in plan.modules},
            relocations,
            places,
            {link.key: number for number, link in enumerate(plan.links)},
        )

    def origin(self, key: bytes) -> bytes:
        """The key in its schema of a module that the prompt reads."""
        return _origin(key, self.relocations)

    def spec(self, key: bytes) -> ModuleSpec:
        """What is needed to encode a module, at the place where the prompt reads it.

        Raises:
            PlanError: The plan does not have it, or its recipe is malformed.
        """
        if (number := self.links.get(key)) is not None:
            return self._link(number)
        if (relocation := self.relocations.get(key)) is not None:
            return self.spec(relocation.origin).relocated(relocation)
        if (module := self.modules.get(key)) is None:
            raise PlanError("malformed prompt plan: a module is missing")
        recipe = unpack_recipe(module.recipe)
        return ModuleSpec(key, recipe.sequence, self._tokens(key, recipe), recipe.kept_runs)

    def _link(self, number: int) -> ModuleSpec:
        *before, link = self.plan.links[: number + 1]
        contexts = (ModuleSpan(span.key, span.num_module_tokens, span.runs) for span in before)
        sequence = SequencePlan(tuple(contexts), link.positions)
        return ModuleSpec(link.key, sequence, tuple(self._at(link.positions)), link.runs)

    def _tokens(self, key: bytes, recipe: Recipe) -> tuple[int, ...]:
        """A module's own tokens: what the recipe has, and between them those of the prompt."""
        num_tokens, given = recipe.sequence.num_new_tokens, iter(recipe.token_ids)
        if len(recipe.token_ids) == num_tokens:
            return recipe.token_ids
        places = self.places.get(key, ())
        if count(places) != count(recipe.kept_runs):
            raise PlanError("malformed prompt plan: a module's tokens are missing")
        kept = self._at(places)
        token_ids: list[int] = []
        for run in recipe.kept_runs:
            token_ids += (next(given) for _ in range(run.start - len(token_ids)))
            token_ids += (next(kept) for _ in range(run.num_tokens))
        return (*token_ids, *given)

    def _at(self, places: Iterable[Run]) -> Iterator[int]:
        for run in places:
            yield from self.tokens.at(run)


def _origin(key: bytes, relocations: Mapping[bytes, Relocation]) -> bytes:
    return relocations[key].origin if key in relocations else key
