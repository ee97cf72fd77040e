"""Combinations of modules that recur are encoded exactly when nothing else is to be done."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.v1.request import Request, RequestStatus

from vllm_promptcache.core import promotions
from vllm_promptcache.core.request import ModularRequest
from vllm_promptcache.sequence.codec import PLAN_KEY, ExactPlan, pack_module, pack_plan, unpack_plan
from vllm_promptcache.sequence.sequence import Run, SequencePlan

from .plans import BLOCK_SIZE, module, raw_request, span
from .test_residency import Engine

A, B = module("a", 9), module("b", 6)
EXACT_A = module("exact a", 9)
EXACT_B = module("exact b", 6, context=(span(EXACT_A),))
NUM_TOKENS = 18


def user(request_id: str) -> Request:
    """A request of A and B that may be served exactly."""
    new = (Run(1000, 3),)
    specs = (A, B, EXACT_A, EXACT_B)
    exact = SequencePlan((span(EXACT_A), span(EXACT_B)), new)
    packed = pack_plan(
        "schema",
        SequencePlan((span(A), span(B)), new),
        [(spec.key, pack_module(spec)) for spec in specs],
        exact=ExactPlan(exact, list(range(NUM_TOKENS)), ["a", "b"]),
    )
    return raw_request(request_id, NUM_TOKENS, packed)


def promoting_engine(**options: Any) -> Engine:
    return Engine(promote_after=2, max_promoted_share=0.5, **options)


def serve(engine: Engine, request_id: str) -> Request:
    """Serves a request to its end."""
    request = user(request_id)
    engine.add(request)
    while engine.prepare():
        engine.run_encodes()
    engine.run_encode(request)
    return request


def abort_encodes(engine: Engine) -> None:
    for request in [r for r in engine.queue if r.request_id.startswith("prompt-module-")]:
        request.status = RequestStatus.FINISHED_ABORTED
        engine.queue.remove(request)
        engine.residency.finish(request, [])


def promote(engine: Engine) -> list[Any]:
    """Lets an idle engine work; returns the modules that are encoded."""
    new = engine.residency.promote()
    engine.queue[:0] = new
    encoded = [engine.residency.get(request).spec for request in new]
    engine.run_encodes()
    return encoded


def test_a_combination_that_recurs_is_promoted() -> None:
    engine = promoting_engine()
    serve(engine, "1")
    assert promote(engine) == []
    serve(engine, "2")
    assert promote(engine) == [EXACT_A, EXACT_B]
    assert promote(engine) == []
    third = serve(engine, "3")
    assert third.prompt_token_ids == list(third.all_token_ids) == list(range(NUM_TOKENS))
    assert engine.residency.metrics.take().data["promoted"] == 1
    stats = engine.residency.store.stats
    assert (stats.num_promotions, stats.num_promoted_requests) == (1, 1)


def test_a_request_that_arrives_stops_a_promotion_which_goes_on_later() -> None:
    engine = promoting_engine()
    serve(engine, "1")
    serve(engine, "2")
    engine.queue[:0] = engine.residency.promote()
    engine.add(user("3"))
    assert len(engine.residency.encodes.take_orphans()) == 1
    abort_encodes(engine)
    engine.queue.clear()
    assert promote(engine) == [EXACT_A, EXACT_B]


def test_what_does_not_fit_its_share_is_not_promoted() -> None:
    engine = promoting_engine(num_blocks=9)
    serve(engine, "1")
    serve(engine, "2")
    assert promote(engine) == []


def test_a_promotion_that_failed_is_given_up() -> None:
    engine = promoting_engine()
    serve(engine, "1")
    serve(engine, "2")
    new = engine.residency.promote()
    assert len(new) == 2
    engine.queue[:0] = new
    abort_encodes(engine)
    assert engine.residency.promote() == []


def test_an_evicted_module_is_promoted_again() -> None:
    engine = promoting_engine()
    serve(engine, "1")
    serve(engine, "2")
    promote(engine)
    engine.residency.store.evict(EXACT_A.key)
    second = serve(engine, "4")
    assert second.prompt_token_ids != list(range(NUM_TOKENS))
    assert EXACT_A in promote(engine)
    assert PLAN_KEY in second.sampling_params.extra_args


def test_those_that_wait_to_be_encoded_are_bounded_by_their_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = promoting_engine()
    request, plan = (
        user("user"),
        unpack_plan(
            user("user").sampling_params.extra_args[PLAN_KEY], num_prompt_tokens=NUM_TOKENS
        ),
    )
    exact = ModularRequest.of(request, plan, plan.exact.sequence, BLOCK_SIZE)
    size = promotions._num_tokens(exact)
    assert size > NUM_TOKENS
    monkeypatch.setattr(promotions, "MAX_NUM_CANDIDATE_TOKENS", 3 * size)
    found = engine.residency.promotions
    for number in range(20):
        other = module(str(number), 6)
        sequence = SequencePlan((span(EXACT_A), span(other)), (Run(1000, 3),))
        for _ in range(2):
            assert not found.is_ready(ModularRequest.of(request, plan, sequence, BLOCK_SIZE))
    assert len(found._candidates) == 3
