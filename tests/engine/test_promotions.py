"""Combinations of modules that recur, through a real engine: as a plain prefill from then on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from vllm.v1.request import Request

from tests.engine.harness import (
    DETAIL,
    counted_tokens,
    greedy,
    idle,
    modules_only,
    running_engine,
    scheduler_of,
)
from tests.generators import random_text
from vllm_promptcache import LLM
from vllm_promptcache.entrypoints.request_options import applied

NUM_DOCUMENTS = 4
SCHEMA = (
    """<schema name="documents"><system>Answer from the documents."""
    + "".join(
        f"<module name='d{number}'>{random_text(Random(number), 70)}</module>"
        for number in range(NUM_DOCUMENTS)
    )
    + "</system></schema>"
)


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[LLM]:
    options = {"promote_after": 2, "verify": True}
    with running_engine(
        smollm2, block_size=32, kv_cache_memory_bytes=640 << 20, prompt_modules=options
    ) as llm:
        llm.add_schema(SCHEMA)
        yield llm


def prompt_of(question: str, modules: str) -> str:
    return f'<prompt schema="documents">{modules}<user>{question}</user></prompt>'


def ask(llm: LLM, question: str, modules: str = "<d0/><d1/><d2/>", **options: bool) -> list[int]:
    """Greedy tokens of an answer."""
    prompt = prompt_of(question, modules)
    with applied(DETAIL):
        (output,) = llm.generate(prompt, modules_only(greedy(2)), use_tqdm=False, **options)
    scheduler_of(llm).check_integrity()
    return list(output.outputs[0].token_ids)


def test_the_third_prompt_of_a_combination_is_exact(llm: LLM) -> None:
    stats = scheduler_of(llm).module_store.stats
    questions = [f"What is {word}?" for word in ("a river", "a hill", "a storm", "a shelf")]
    plain = [ask(llm, question, reuse=False) for question in questions]
    modular = []
    for question in questions[:2]:
        modular.append(ask(llm, question))
        idle(llm)
    assert stats.num_promotions == 1
    assert stats.num_promoted_requests == 0
    assert modular != plain[:2]
    assert [ask(llm, question) for question in questions] == plain
    assert stats.num_promoted_requests == 4
    # So are prompts that end earlier; another combination is approximate as before.
    ask(llm, questions[0], "<d0/><d1/>")
    assert stats.num_promoted_requests == 5
    ask(llm, questions[0], "<d1/><d2/>")
    assert stats.num_promoted_requests == 5


def test_a_prompt_that_comes_meanwhile_is_served_at_once(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = scheduler_of(llm).module_store.stats
    monkeypatch.setattr(scheduler_of(llm)._background._pace, "num_tokens", lambda *, is_alone: 1)
    modules = "<d1/><d2/><d3/>"
    plain = ask(llm, "What is it?", modules, reuse=False)
    first = [ask(llm, "What is it?", modules) for _ in range(2)]
    scheduler = scheduler_of(llm)
    assert scheduler.has_requests()
    llm.llm_engine.step()
    num_promoted = stats.num_promoted_requests
    with counted_tokens(llm) as counts:
        assert ask(llm, "What is it?", modules) == first[0]
    # Nothing of the chain is encoded beside the prompt, and what the pace allows beside the answer.
    num_new = llm.explain(prompt_of("What is it?", modules)).num_new_tokens
    assert counts[0] == num_new
    assert max(counts[1:]) <= 2
    assert stats.num_promoted_requests == num_promoted
    idle(llm)
    assert ask(llm, "What is it?", modules) == plain
    assert stats.num_promoted_requests == num_promoted + 1


def test_a_combination_becomes_exact_beside_a_user(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules, scheduler = "<d0/><d3/>", scheduler_of(llm)
    plain = ask(llm, "What is it?", modules, reuse=False)
    monkeypatch.setattr(scheduler._background._pace, "num_tokens", lambda *, is_alone: 7)
    stats = scheduler.module_store.stats
    num_promotions, num_promoted = stats.num_promotions, stats.num_promoted_requests
    params = modules_only(greedy(0, max_tokens=300))
    (user_id,) = llm.enqueue("Once upon a time", params, use_tqdm=False)
    prompt = prompt_of("What is it?", modules)
    llm.enqueue([prompt] * 2, [modules_only(greedy(2)) for _ in range(2)], use_tqdm=False)
    while stats.num_promotions == num_promotions:
        llm.llm_engine.step()
    # In chunks that end anywhere, beside a user who is not done.
    assert user_id in scheduler.requests
    llm.llm_engine.abort_request([user_id], internal=True)
    idle(llm)
    assert ask(llm, "What is it?", modules) == plain
    assert stats.num_promoted_requests == num_promoted + 1


def test_modules_are_encoded_in_the_order_of_the_chain(llm: LLM) -> None:
    """Else a pool that holds not much more could block the first behind the last."""
    residency = scheduler_of(llm).residency
    num_contexts: list[list[int]] = []
    encode_for_nobody = residency.encode_for_nobody

    def noting(*, is_idle: bool) -> list[Request]:
        new = encode_for_nobody(is_idle=is_idle)
        num_contexts.append([len(residency.get(request).sequence.spans) for request in new])
        return new

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residency, "encode_for_nobody", noting)
        for _ in range(2):
            ask(llm, "What is it?", "<d3/><d2/>")
        idle(llm)
    assert [found for found in num_contexts if found] == [[0], [1]]
