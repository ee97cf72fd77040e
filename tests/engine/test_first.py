"""Prompts that begin exactly: with a module that stands first, or with promoted modules.

Each is compared with one in which what is exact is computed, behind what is before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.engine.agreement import difference
from tests.engine.explanations import as_promoted, as_repaired, computing
from tests.engine.harness import (
    greedy,
    idle,
    modules_only,
    noted_requests,
    running_engine,
    scheduler_of,
)
from tests.generators import FIXED_SCHEMAS, Case, CaseMaker, random_text
from tests.reference import Reference
from tests.reference.compare import Tally
from vllm_promptcache import LLM
from vllm_promptcache.errors import ClientError

NUM_PROMPTS = 100
BATCH_SIZE = 10
NUM_RANDOM_SCHEMAS = 12
# Rounding, as in `test_agreement`.
TOLERANCE = 2e-4
NUM_LOGPROBS = 50
NUM_DOCUMENTS = 5
DOCUMENTS = (
    """<schema name="papers" layout="compact"><user>Papers follow."""
    + "".join(
        f"<module name='p{number}'>{random_text(Random(number), 45 + 7 * number)}</module>"
        for number in range(NUM_DOCUMENTS)
    )
    + "Which one is it?</user></schema>"
)


@pytest.fixture(scope="module")
def llm(shallow: Path) -> Iterator[LLM]:
    options = {"promote_after": 1, "verify": True}
    with running_engine(
        shallow, block_size=32, kv_cache_memory_bytes=640 << 20, prompt_modules=options
    ) as llm:
        yield llm


@pytest.fixture(scope="module")
def reference(shallow: Path) -> Reference:
    return Reference(shallow)


def explain(llm: LLM, pml: str) -> dict[str, Any]:
    return llm.explain(pml).to_dict()


def is_first(module: dict[str, Any]) -> bool:
    """Whether a prompt reads a module that equals a plain prefill."""
    return module["policy"] == "exact" and bool(module["path"]) and any(module["reused"])


def first_cases(llm: LLM) -> list[Case]:
    """Random prompts that begin with a module; every other one has more of them behind it."""
    maker = CaseMaker(5, lambda pml: explain(llm, pml), ClientError)
    schemas = [*FIXED_SCHEMAS]
    for schema in FIXED_SCHEMAS:
        llm.add_schema(schema.pml)
    schemas += [maker.schema(f"first-{n}", llm.add_schema) for n in range(NUM_RANDOM_SCHEMAS)]
    cases: list[Case] = []
    for schema in cycle(schemas):
        case = maker.prompt(schema)
        modules = case.explanation["modules"]
        is_wanted = sum(any(m["reused"]) and m["policy"] == "primed" for m in modules) > 0
        if any(map(is_first, modules)) and is_wanted == len(cases) % 2:
            cases.append(case)
        if len(cases) == NUM_PROMPTS:
            return cases
    raise AssertionError("cycles never end")


def test_the_first_module_equals_a_plain_prefill(llm: LLM, reference: Reference) -> None:
    cases, tally = first_cases(llm), Tally(TOLERANCE)
    assert sum(any(m["context"] for m in c.explanation["modules"] if is_first(m)) for c in cases)
    params = modules_only(greedy(NUM_LOGPROBS, max_tokens=2))
    for start in range(0, NUM_PROMPTS, BATCH_SIZE):
        batch = cases[start : start + BATCH_SIZE]
        requests = noted_requests(llm)
        outputs = llm.generate([case.pml for case in batch], params, use_tqdm=False)
        served = {request_id.rsplit("-", 1)[0]: found for request_id, found in requests.items()}
        scheduler_of(llm).check_integrity()
        for case, output in zip(batch, outputs, strict=True):
            plan = as_promoted(case.explanation, served.get(output.request_id))
            plan = computing(plan, lambda module, position: module["policy"] == "exact")
            tally.add(case.pml, difference(reference, output, plan))
    assert tally.num_outputs == NUM_PROMPTS
    assert not tally.wrong


def test_the_promoted_beginning_of_a_prompt_equals_a_plain_prefill(
    llm: LLM, reference: Reference
) -> None:
    llm.add_schema(DOCUMENTS)
    rng, tally, stats = Random(6), Tally(TOLERANCE), scheduler_of(llm).module_store.stats
    num_whole, num_partly = stats.num_promoted_requests, stats.num_partly_promoted_requests
    requests = noted_requests(llm)
    params = modules_only(greedy(NUM_LOGPROBS, max_tokens=2))
    for _ in range(NUM_PROMPTS):
        numbers = rng.sample(range(NUM_DOCUMENTS), rng.randint(2, NUM_DOCUMENTS))
        imports = "".join(f"<p{number}/>" for number in numbers)
        repair = rng.choice(("none", "none", "head:8", "query:20"))
        pml = f'<prompt schema="papers" repair="{repair}">{imports}{random_text(rng, 9)}</prompt>'
        requests.clear()
        (output,) = llm.generate(pml, params, use_tqdm=False)
        (modular,) = (found for found in requests.values() if found.account.schema == "papers")
        plan = as_promoted(explain(llm, pml), modular)
        tally.add(pml, difference(reference, output, as_repaired(plan, modular)))
        scheduler_of(llm).check_integrity()
        if rng.random() < 0.3:
            idle(llm)
    assert not tally.wrong
    # Both came about, so that both were compared.
    assert stats.num_promoted_requests - num_whole > 5
    assert stats.num_partly_promoted_requests - num_partly > 20
