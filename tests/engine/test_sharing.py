"""Modules are shared by reference, and only new tokens are prefilled: seen from the scheduler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from vllm.sampling_params import BeamSearchParams

from tests.engine.harness import counted_tokens, greedy, modules_only, running_engine, scheduler_of
from tests.generators import random_text
from tests.plan.planning import engine_order
from vllm_promptcache import LLM, SamplingParams
from vllm_promptcache.errors import ClientError, PlanError, PMLError
from vllm_promptcache.sequence.codec import PLAN_KEY

NUM_MODULES = 8
ENGINE_ARGS = {
    "num_gpu_blocks_override": 200,
    "kv_cache_memory_bytes": 256 << 20,
}


def schema(rng: Random) -> str:
    """Modules of 40 to 200 words, one of them with a parameter."""
    texts = [random_text(rng, rng.randint(40, 200)) for _ in range(NUM_MODULES)]
    texts[0] += ' <param name="topic" len="6"/>'
    modules = "".join(f'<module name="m{i}">{text}</module>' for i, text in enumerate(texts))
    return f'<schema name="shared"><system>Be brief.</system><user>{modules}</user></schema>'


def prompt(rng: Random) -> str:
    """Some of the modules in any order, and a question."""
    names = rng.sample(range(NUM_MODULES), rng.randint(2, 5))
    imports = "".join(f"<m{i}/>" if i else "<m0 topic='rain'/>" for i in names)
    question = random_text(rng, rng.randint(3, 12))
    return f'<prompt schema="shared">{imports}<user>{question}</user></prompt>'


@pytest.fixture(scope="module")
def llm(shallow: Path) -> Iterator[LLM]:
    with running_engine(shallow, **ENGINE_ARGS) as engine:
        engine.add_schema(schema(Random(0)), warm=True)
        yield engine


def test_concurrent_prompts_hold_the_same_blocks(
    llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, scheduler = Random(1), scheduler_of(llm)
    prompts = [prompt(rng) for _ in range(16)]
    ids = llm.enqueue(prompts, greedy(0, max_tokens=20), use_tqdm=False)
    while len(scheduler.running) < len(prompts):
        llm.llm_engine.step()
    pool, manager = scheduler.kv_cache_manager.block_pool, scheduler.kv_cache_manager
    tables = {request_id: manager.get_block_ids(request_id)[0] for request_id in ids}
    holders = Counter(block_id for table in tables.values() for block_id in table)
    num_unshared = 0
    for request_id, text in zip(ids, prompts, strict=True):
        table, layout = tables[request_id], llm.explain(text).to_dict()
        expected = [
            block_id
            for module in llm.front_end.plan(text).modules
            for block_id in scheduler.module_store.lookup(module.layout.key).block_ids[
                : module.num_tokens // 32
            ]
        ]
        assert table[: len(expected)] == expected
        assert len(expected) == sum(m["num_full_blocks"] for m in layout["modules"])
        num_unshared += len(table)
        with capsys.disabled():
            blocks = " ".join(f"{b}x{pool.blocks[b].ref_cnt}" for b in table)
            print(f"\n{request_id.split('-')[0]:>3} blocks, as id x references: {blocks}", end="")
    assert all(pool.blocks[block_id].ref_cnt == n for block_id, n in holders.items())
    with capsys.disabled():
        print(f"\n{len(holders)} blocks are held; without sharing it would be {num_unshared}")
    assert len(holders) < 0.6 * num_unshared
    llm.wait_for_completion(use_tqdm=False)
    assert all(block.ref_cnt == 0 for block in pool.blocks if not block.is_null)
    scheduler.check_integrity()


def test_warm_prompts_prefill_what_their_plans_say(
    llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = Random(2)
    pairs = []
    for text in [prompt(rng) for _ in range(20)]:
        planned = llm.explain(text)
        # The module that stands first is encoded otherwise than it was for warming.
        llm.generate(text, greedy(0, max_tokens=1), use_tqdm=False)
        with counted_tokens(llm) as counts:
            once = modules_only(greedy(0, max_tokens=1))
            (output,) = llm.generate(text, once, use_tqdm=False)
        pairs.append((sum(counts), planned.num_new_tokens))
        assert output.num_cached_tokens == planned.num_cached_tokens
    with capsys.disabled():
        print(f"\ncomputed, planned: {pairs}")
    assert all(computed == planned for computed, planned in pairs)


def test_a_repeated_prompt_is_no_ordinary_prefix_cache_hit(llm: LLM) -> None:
    text = prompt(Random(3))
    first, second = (llm.generate(text, greedy(1), use_tqdm=False)[0] for _ in range(2))
    assert first.outputs[0].token_ids == second.outputs[0].token_ids
    assert first.num_cached_tokens <= second.num_cached_tokens
    in_blocks = engine_order(llm.front_end.plan(text))
    for token_ids in (in_blocks, first.prompt_token_ids):
        (plain,) = llm.generate({"prompt_token_ids": token_ids}, greedy(1), use_tqdm=False)
        assert plain.num_cached_tokens == 0


def test_prompt_tokens_come_back_in_the_order_of_reading(llm: LLM) -> None:
    text = prompt(Random(3))
    (reused,) = llm.generate(text, greedy(1), use_tqdm=False)
    (plain,) = llm.generate(text, greedy(1), reuse=False, use_tqdm=False)
    assert reused.prompt_token_ids == plain.prompt_token_ids
    assert reused.prompt_token_ids != engine_order(llm.front_end.plan(text))


def test_reuse_false_touches_no_module(llm: LLM) -> None:
    commits = scheduler_of(llm).module_store.stats.num_commits
    text = prompt(Random(4))
    llm.reset_prefix_cache()
    (output,) = llm.generate(text, greedy(0), reuse=False, use_tqdm=False)
    assert output.num_cached_tokens == 0
    assert len(output.prompt_token_ids) == llm.explain(text).num_tokens
    assert scheduler_of(llm).module_store.stats.num_commits == commits
    assert not scheduler_of(llm).module_store.modules


@pytest.mark.parametrize("level", [1, 2])
def test_modules_are_encoded_again_after_a_sleep(llm: LLM, level: int) -> None:
    text = prompt(Random(9))
    _, before = (llm.generate(text, greedy(1), use_tqdm=False)[0] for _ in range(2))
    llm.sleep(level)
    assert not scheduler_of(llm).module_store.modules
    llm.wake_up()
    (after,) = llm.generate(text, greedy(1), use_tqdm=False)
    assert after.outputs[0].token_ids == before.outputs[0].token_ids
    assert before.num_cached_tokens > 0 == after.num_cached_tokens
    scheduler_of(llm).check_integrity()


def test_prompts_of_all_kinds_go_into_one_batch(llm: LLM) -> None:
    text = prompt(Random(5))
    prompts = [text, "The sky is", {"prompt_token_ids": [1, 2, 3]}, {"prompt": text}]
    alone = [llm.generate([p], greedy(0), use_tqdm=False)[0] for p in prompts]
    batch = llm.generate(prompts, greedy(0), use_tqdm=False)
    assert [len(o.prompt_token_ids) for o in batch] == [len(o.prompt_token_ids) for o in alone]
    assert batch[0].num_cached_tokens == batch[3].num_cached_tokens > 0
    assert batch[0].prompt == text


def test_generation_stops_at_the_last_position(shallow: Path, llm: LLM) -> None:
    max_model_len = llm.model_config.max_model_len
    gap = "<module name='filler'>" + "word " * (max_model_len - 60) + "</module>"
    llm.add_schema(f"<schema name='long'>{gap}<module name='end'>The end</module></schema>")
    text = "<prompt schema='long'><end/> is</prompt>"
    room = max_model_len - llm.explain(text).next_position
    params = SamplingParams(max_tokens=500, temperature=0.0, ignore_eos=True)
    (output,) = llm.generate(text, params, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == room < 60


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        (SamplingParams(prompt_logprobs=1), "prompt_logprobs cannot be combined"),
        (SamplingParams(extra_args={"prompt_modules": b"forged"}), None),
        (SamplingParams(skip_reading_prefix_cache=True), None),
        (SamplingParams(n=3, seed=1), None),
    ],
)
def test_sampling_parameters(llm: LLM, params: SamplingParams, reason: str | None) -> None:
    text = prompt(Random(6))
    if reason is not None:
        with pytest.raises(ValueError, match=reason):
            llm.generate(text, params, use_tqdm=False)
        return
    # The module that stands first is encoded for the first prompt that begins with it.
    llm.generate(text, SamplingParams(max_tokens=1), use_tqdm=False)
    (output,) = llm.generate(text, params, use_tqdm=False)
    num_planned = llm.explain(text).num_cached_tokens
    if params.skip_reading_prefix_cache:
        assert output.num_cached_tokens == num_planned
    else:
        assert output.num_cached_tokens >= num_planned
    assert len(output.outputs) == params.n
    scheduler_of(llm).check_integrity()


def test_what_does_not_go_with_pml_is_refused(llm: LLM) -> None:
    text = prompt(Random(7))
    with pytest.raises(PlanError, match="beam search"):
        llm.beam_search([{"prompt": text}], BeamSearchParams(beam_width=2, max_tokens=2))
    with pytest.raises(PlanError, match="embeddings"):
        llm.generate({"prompt": text, "prompt_embeds": []}, use_tqdm=False)
    with pytest.raises(PMLError, match="no schema"):
        llm.generate(["fine", "<prompt schema='none'>x</prompt>"], use_tqdm=False)
    assert not scheduler_of(llm).requests


def test_a_prompt_that_can_never_fit_is_refused_with_the_numbers(llm: LLM) -> None:
    # 300 modules of a token or two: they need a block each while the prompt is admitted.
    modules = "".join(f"<module name='t{i}'>tiny</module>" for i in range(300))
    llm.add_schema(f"<schema name='tiny'>{modules}</schema>")
    imports = "".join(f"<t{i}/>" for i in range(300))
    with pytest.raises(
        PlanError, match=r"needs \d+ KV cache blocks of 32 tokens, the cache has 199"
    ):
        llm.generate(f"<prompt schema='tiny'>{imports} Why?</prompt>", use_tqdm=False)


def test_a_malformed_plan_ends_its_request_and_the_engine_goes_on(llm: LLM) -> None:
    scheduler, text = scheduler_of(llm), prompt(Random(8))
    (request_id,) = llm.enqueue(text, greedy(0), use_tqdm=False)
    request = scheduler.requests[request_id]
    scheduler.residency.finish(request, [])
    request.sampling_params.extra_args = {PLAN_KEY: b"\x00"}
    scheduler.residency.add(request)
    (output,) = llm.wait_for_completion(use_tqdm=False)
    assert output.outputs[0].finish_reason == "error"
    assert "malformed prompt plan" in output.outputs[0].stop_reason
    (output,) = llm.generate(text, greedy(0), use_tqdm=False)
    assert output.outputs[0].finish_reason == "length"


def test_schemas_come_and_go(llm: LLM) -> None:
    info = llm.add_schema("<schema name='s'><module name='a'>One two three.</module></schema>")
    (root, module) = info.modules
    assert (root.path, root.num_tokens, module.path, module.start) == ("", 0, "a", 0)
    assert (module.num_tokens, module.num_blocks) == (info.num_tokens, 1)
    assert llm.schemas["s"] == info
    llm.remove_schema("s")
    assert "s" not in llm.schemas
    with pytest.raises(ClientError, match="no schema"):
        llm.remove_schema("s")
