"""Model Runner V2, its Triton kernels interpreted: prompts against the reference.

It is chosen before vLLM is imported, so these tests need a process of their own:

    TEST_MODEL_RUNNER=v2 python -m pytest tests/engine/test_runner_v2.py

Other engine tests run on it in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.environment import prepare_environment, runs_on_v2

prepare_environment()

from tests.engine.agreement import (  # noqa: E402  (vLLM reads its environment when imported)
    Agreement,
    difference,
)
from tests.engine.explanations import (  # noqa: E402
    as_repaired,
)
from tests.engine.harness import (  # noqa: E402
    MAX_TOKENS,
    greedy,
    modules_only,
    noted_requests,
    running_engine,
    scheduler_of,
)
from tests.generators import random_text  # noqa: E402
from tests.reference import Reference  # noqa: E402
from vllm_promptcache import LLM  # noqa: E402

pytestmark = pytest.mark.skipif(not runs_on_v2(), reason="needs TEST_MODEL_RUNNER=v2")

TOLERANCE = 2e-4
NUM_PROMPTS = 8
MODULES = "".join(
    f"<module name='m{number}'>{random_text(Random(number), length)}</module> "
    for number, length in enumerate((90, 40, 70))
)
SCHEMA = f"<schema name='v2' encode='isolated'>Read. {MODULES}</schema>"
# A module is left out, so positions are more than indexes.
BETWEEN = "<prompt schema='v2'><m2/> between them <m0/> What now?</prompt>"


@pytest.fixture(scope="module")
def reference(shallow: Path) -> Reference:
    return Reference(shallow)


@pytest.fixture(scope="module")
def llm(shallow: Path) -> Iterator[LLM]:
    options = {"verify": True}
    with running_engine(
        shallow,
        block_size=32,
        kv_cache_memory_bytes=640 << 20,
        max_num_batched_tokens=64,
        prompt_modules=options,
    ) as llm:
        assert llm.llm_engine.vllm_config.use_v2_model_runner
        llm.add_schema(SCHEMA)
        yield llm


def test_prompts_agree(llm: LLM, reference: Reference, capsys: pytest.CaptureFixture[str]) -> None:
    """All policies, moved modules, repair, text between modules; in chunks of 64 tokens."""
    agreement = Agreement(llm, reference, 50, TOLERANCE)
    modular, plain = agreement.run(NUM_PROMPTS, seed=5, num_random_schemas=3)
    with capsys.disabled():
        print(f"\n{modular}; plain prompts beside them: {plain}")
    assert modular.num_outputs == NUM_PROMPTS
    assert not modular.wrong
    assert not plain.wrong


def test_what_was_preempted_goes_on(llm: LLM, reference: Reference) -> None:
    prompts = [BETWEEN, "<prompt schema='v2'><m1/><m0/> Which of them is it?</prompt>"]
    expected = [llm.explain(text).to_dict() for text in prompts]
    ids = llm.enqueue(prompts, modules_only(greedy(50)), use_tqdm=False)
    outputs, resets = {}, 0
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            outputs[output.request_id] = output
        running = scheduler_of(llm).running
        if resets < 3 and running and all(r.num_output_tokens > resets for r in running):
            assert llm.llm_engine.reset_prefix_cache(reset_running_requests=True)
            resets += 1
    assert resets == 3
    for request_id, explanation in zip(ids, expected, strict=True):
        found = difference(reference, outputs[request_id.rsplit("-", 1)[0]], explanation)
        assert found.largest < TOLERANCE
    scheduler_of(llm).check_integrity()


def test_the_sampler_counts_tokens_by_their_index(llm: LLM) -> None:
    """In a step's `positions`, which it compares with lengths; the model's are others."""
    first, *_ = llm.generate([BETWEEN], greedy(0), use_tqdm=False)[0].outputs[0].token_ids
    params = greedy(0, stop_token_ids=[first], min_tokens=5)
    (output,) = llm.generate([BETWEEN], params, use_tqdm=False)[0].outputs
    assert first not in output.token_ids[:5]


def test_full_graphs_are_replayed_for_regular_steps_only(
    shallow: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay has one row of attention a request, and observes nothing."""
    from tests.engine.fake_graphs import FakeGraphs

    repaired = BETWEEN.replace("v2", "repaired")
    graphs = FakeGraphs(monkeypatch)
    with running_engine(shallow, block_size=32, kv_cache_memory_bytes=640 << 20) as llm:
        graphs.capture()
        llm.add_schema(SCHEMA)
        llm.add_schema(SCHEMA.replace("'v2'", "'repaired' repair='query:20'"))
        noted = noted_requests(llm)
        before = graphs.num_offered - graphs.num_replayed
        outputs = llm.generate([BETWEEN, repaired], modules_only(greedy(50)), use_tqdm=False)
        num_others = graphs.num_offered - graphs.num_replayed - before
        requests = {key.rsplit("-", 1)[0]: noted[key] for key in noted}
        for text, output in zip([BETWEEN, repaired], outputs, strict=True):
            explanation = llm.explain(text).to_dict()
            plan = as_repaired(explanation, requests[output.request_id])
            assert difference(reference, output, plan).largest < TOLERANCE
    # The first pass of the second prompt, and what is repaired of it.
    assert num_others == 2
    assert graphs.num_replayed >= MAX_TOKENS
