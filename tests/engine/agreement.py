"""Random prompts through an engine, compared with the reference."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice
from random import Random
from typing import Any

from vllm import RequestOutput

from tests.engine.explanations import as_repaired, check_counts, check_explanation
from tests.engine.harness import DETAIL, greedy, modules_only, noted_requests, scheduler_of
from tests.generators import FIXED_SCHEMAS, Case, CaseMaker, Schema, random_text
from tests.reference import Reference, shift_of
from tests.reference.compare import TOLERANCE, Difference, Tally
from vllm_promptcache import LLM
from vllm_promptcache.entrypoints.request_options import applied
from vllm_promptcache.errors import ClientError

# PML prompts that are sent at once, together with two plain ones. They are of few schemas, so that
# some of them share modules.
BATCH_SIZE = 8
SCHEMAS_A_BATCH = 3
SCHEMA_SEED = 0


def difference(
    reference: Reference, output: RequestOutput, explanation: dict[str, Any] | None
) -> Difference:
    """Compares an output with the reference.

    Args:
        explanation: The prompt's plan; None for a plain prompt.
    """
    token_ids = list(output.outputs[0].token_ids)
    if explanation is None:
        prompt_ids = output.prompt_token_ids
        scored = reference.score_plain(prompt_ids, range(len(prompt_ids)), token_ids)
    else:
        scored = reference.score(explanation, token_ids)
    logprobs = [
        {token_id: logprob.logprob for token_id, logprob in step.items()}
        for step in output.outputs[0].logprobs
    ]
    return Difference.between(scored, token_ids, logprobs)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Random prompts through an engine and through the reference.

    Attributes:
        llm: The engine.
        reference: The same model.
        num_logprobs: Log-probabilities compared at each step, -1 for all.
        tolerance: What counts as rounding, in nats.
    """

    llm: LLM
    reference: Reference
    num_logprobs: int
    tolerance: float = TOLERANCE

    def run(self, num_prompts: int, *, seed: int, num_random_schemas: int) -> tuple[Tally, Tally]:
        """Compares `num_prompts` prompts over all fixed and some random schemas.

        Returns:
            The differences of PML prompts, and those of plain prompts that ran beside them.
        """
        schemas = self.add_schemas(num_random_schemas)
        maker = CaseMaker(seed, self.explain, ClientError, attended=0.2)
        modular, plain = Tally(self.tolerance), Tally(self.tolerance)
        rng = Random(seed)
        in_turn = cycle(schemas)
        for start in range(0, num_prompts, BATCH_SIZE):
            few = list(islice(in_turn, SCHEMAS_A_BATCH))
            num_cases = min(BATCH_SIZE, num_prompts - start)
            cases = [maker.prompt(rng.choice(few)) for _ in range(num_cases)]
            self._run_batch(cases, rng, modular, plain)
        print(f"{len(schemas)} schemas, {maker.num_refused} prompts refused and made anew")
        return modular, plain

    def explain(self, pml: str) -> dict[str, Any]:
        """The plan of a prompt, once its numbers are checked."""
        explanation: dict[str, Any] = self.llm.explain(pml).to_dict()
        check_explanation(explanation, self.block_size)
        return explanation

    def _as_moved(self, explanation: dict[str, Any]) -> dict[str, Any]:
        """What an engine that cannot rotate keys does: what moves is encoded there, alone."""
        if scheduler_of(self.llm).residency.tiers.can_relocate:
            return explanation
        modules = explanation["modules"]
        moved = [index for index, module in enumerate(modules) if shift_of(module)]
        # What is encoded behind a module is encoded behind it as its schema has it.
        schemas = {index: len(modules) + number for number, index in enumerate(moved)}
        unread = [modules[i] | {"reused": [False] * len(modules[i]["reused"])} for i in moved]
        modules = [
            module | {"context": [(schemas.get(i, i), num) for i, num in module["context"]]}
            for module in (*modules, *unread)
        ]
        for index in moved:
            places = modules[index]["position_ids"]
            modules[index] |= {"encoded_position_ids": places, "context": []}
        return explanation | {"modules": modules}

    @property
    def block_size(self) -> int:
        """Tokens in a KV cache block of the engine."""
        size: int = self.llm.llm_engine.vllm_config.cache_config.block_size
        return size

    def add_schemas(self, num_random: int) -> list[Schema]:
        """Adds all fixed schemas and random ones, each time the same, and returns them."""
        maker = CaseMaker(SCHEMA_SEED, self.explain, ClientError)
        for schema in FIXED_SCHEMAS:
            self.llm.add_schema(schema.pml)
        made = [maker.schema(f"random-{n}", self.llm.add_schema) for n in range(num_random)]
        return [*FIXED_SCHEMAS, *made]

    def _run_batch(self, cases: list[Case], rng: Random, modular: Tally, plain: Tally) -> None:
        prompts: list[tuple[str, dict[str, Any] | None]]
        prompts = [(case.pml, case.explanation) for case in cases]
        prompts += [(random_text(rng, rng.randint(2, 120)), None) for _ in range(2)]
        rng.shuffle(prompts)
        texts = [prompt for prompt, _ in prompts]
        # Half of the batches also reuse what earlier prompts have behind their modules.
        has_private_reuse = rng.random() < 0.5
        params = greedy(self.num_logprobs)
        noted = noted_requests(self.llm)
        with applied(DETAIL):
            outputs = self.llm.generate(
                texts,
                params if has_private_reuse else modules_only(params),
                priority=random_priorities(self.llm, rng, len(texts)),
                use_tqdm=False,
            )
        requests = {request_id.rsplit("-", 1)[0]: noted[request_id] for request_id in noted}
        for (prompt, explanation), output in zip(prompts, outputs, strict=True):
            if explanation is not None:
                explanation = self._as_moved(explanation)
                explanation = as_repaired(explanation, requests.get(output.request_id))
            found = difference(self.reference, output, explanation)
            (plain if explanation is None else modular).add(prompt, found)
            if explanation is not None and not has_private_reuse:
                check_counts(output, explanation)


def random_priorities(llm: LLM, rng: Random, number: int) -> list[int] | None:
    """Priorities of so many prompts; None if the engine knows none."""
    if llm.llm_engine.vllm_config.scheduler_config.policy != "priority":
        return None
    return rng.choices(range(-1, 3), k=number)
