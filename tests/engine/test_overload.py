"""Two hundred requests at once whose modules are five times the block pool: all are served.

The engine's model is small, and each answer is compared with one that was computed alone.
"""

from __future__ import annotations

import time
from pathlib import Path
from random import Random
from statistics import median

import pytest
from vllm import RequestOutput

from tests.engine.harness import greedy, running_engine, scheduler_of
from tests.families import LLAMA
from tests.generators import random_text
from tests.reference.compare import TOLERANCE
from vllm_promptcache import LLM

NUM_REQUESTS = 200
NUM_MODULES = 80
NUM_BLOCKS = 40
OVERLOAD = 5
MAX_TOKENS = 4
# More steps than these requests can need: behind it some are stuck.
MAX_STEPS = 20_000
STEPS_BETWEEN_CHECKS = 20
ENGINE_ARGS = {
    "block_size": 32,
    "num_gpu_blocks_override": NUM_BLOCKS,
    "kv_cache_memory_bytes": 16 << 20,
    "max_model_len": 1024,
}
# Room for a third of the modules.
HOST_MEMORY = (2 << 20) / 2**30

# Tokens of an answer, and their log-probabilities.
Answer = tuple[tuple[int, ...], tuple[float, ...]]


def schema() -> str:
    """Modules of which a prompt imports one."""
    rng = Random(0)
    texts = [random_text(rng, rng.randint(30, 120)) for _ in range(NUM_MODULES)]
    modules = "".join(f'<module name="m{i}">{text}</module>' for i, text in enumerate(texts))
    return f'<schema name="s"><union>{modules}</union></schema>'


def make_prompts() -> list[str]:
    """Prompts that import each module at least once; no two are the same."""
    rng = Random(1)
    numbers = [*range(NUM_MODULES), *rng.choices(range(NUM_MODULES), k=NUM_REQUESTS - NUM_MODULES)]
    rng.shuffle(numbers)
    return [f'<prompt schema="s"><m{i}/> {random_text(rng, 12)}</prompt>' for i in numbers]


def answer_of(output: RequestOutput) -> Answer:
    """Tokens of an output and how probable each was."""
    completion = output.outputs[0]
    assert completion.finish_reason == "length", completion.stop_reason
    token_ids = tuple(completion.token_ids)
    steps = zip(completion.logprobs, token_ids, strict=True)
    return token_ids, tuple(step[token_id].logprob for step, token_id in steps)


def num_wrong(answers: list[Answer], expected: list[Answer]) -> int:
    """Answers that differ by more than rounding."""
    return sum(
        ours[0] != theirs[0] or ours[1] != pytest.approx(theirs[1], abs=TOLERANCE)
        for ours, theirs in zip(answers, expected, strict=True)
    )


def alone(llm: LLM, prompts: list[str]) -> list[Answer]:
    """Answers computed one at a time. Empties the KV cache."""
    params = greedy(0, max_tokens=MAX_TOKENS)
    found = [llm.generate(prompt, params, use_tqdm=False)[0] for prompt in prompts]
    assert llm.reset_prefix_cache()
    return [answer_of(output) for output in found]


def at_once(llm: LLM, prompts: list[str]) -> tuple[list[Answer], str]:
    """Answers to all prompts, added before the first step, and what that took."""
    scheduler, before, since = scheduler_of(llm), counts(llm), time.perf_counter()
    params = greedy(0, max_tokens=MAX_TOKENS)
    ids = [i.rsplit("-", 1)[0] for i in llm.enqueue(prompts, params, use_tqdm=False)]
    found: dict[str, RequestOutput] = {}
    for step in range(MAX_STEPS):
        if not llm.llm_engine.has_unfinished_requests():
            break
        found |= {output.request_id: output for output in llm.llm_engine.step()}
        if step % STEPS_BETWEEN_CHECKS == 0:
            scheduler.check_integrity()
    seconds = time.perf_counter() - since
    assert found.keys() == set(ids), f"{len(ids) - len(found)} requests are stuck"
    scheduler.check_integrity()
    waits = [output.metrics.first_token_latency for output in found.values()]
    numbers = {name: value - before[name] for name, value in counts(llm).items()}
    report = (
        f"all in {seconds:.2f} s and {step} steps, first token after {median(waits):.2f} s "
        f"(median) to {max(waits):.2f} s (longest): "
        + ", ".join(f"{value} {name}" for name, value in numbers.items())
    )
    return [answer_of(found[i]) for i in ids], report


def counts(llm: LLM) -> dict[str, int]:
    """What the engine did with modules since it started."""
    residency = scheduler_of(llm).residency
    stats = residency.store.stats
    return {
        "encodes": residency.encodes.num_started,
        "restores": stats.num_restores,
        "fetches": stats.num_fetches,
        "evictions": stats.num_evictions,
    }


def num_module_blocks(llm: LLM) -> int:
    """Blocks that all modules together would take."""
    modules = llm.front_end.planner.schemas.get("s").layout.modules
    size = ENGINE_ARGS["block_size"]
    return sum(-(-module.num_kept_tokens // size) for module in modules)


def test_all_requests_are_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """First without other tiers; then with an empty folder; then with what the last run left."""
    model, prompts, runs = LLAMA.save(tmp_path / "model"), make_prompts(), []
    with running_engine(model, prompt_modules={}, **ENGINE_ARGS) as llm:
        llm.add_schema(schema())
        assert num_module_blocks(llm) > OVERLOAD * NUM_BLOCKS
        expected = alone(llm, prompts)
        runs.append(at_once(llm, prompts))
    options = {"host_memory": HOST_MEMORY, "dir": str(tmp_path / "modules")}
    with running_engine(model, prompt_modules=options, **ENGINE_ARGS) as llm:
        llm.add_schema(schema())
        runs += [at_once(llm, prompts) for _ in range(2)]
    with capsys.disabled():
        print("", *(report for _, report in runs), sep="\n")
    assert [num_wrong(answers, expected) for answers, _ in runs] == [0, 0, 0]
    assert len(set(expected)) == NUM_REQUESTS
