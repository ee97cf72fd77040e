"""Combinations of modules that recur are encoded exactly when nothing else is to be done."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from vllm.lora.request import LoRARequest
from vllm.v1.request import Request, RequestStatus

from tests.core.plans import module, placed, plan, planned_request, span
from tests.core.test_residency import Engine
from vllm_promptcache.core.promotion import promotions
from vllm_promptcache.sequence.codec import DETAIL_KEY
from vllm_promptcache.sequence.prompt import ModulePrompt
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.sequence.spans import ModuleSpan

A, B = module("a", 9), module("b", 6)
LINKS = placed([span(module("exact a", 9)), span(module("exact b", 6))])
KEYS = [link.key for link in LINKS]
NUM_TOKENS = 18
# Blocks of 4: those of both modules, then their tails, then new tokens.
ORDER = [*range(8), *range(9, 13), 8, 13, 14, *range(15, 18)]
PLAN = plan(placed([span(A), span(B)]), (A, B), (Run(15, 3),), links=tuple(LINKS), can_promote=True)


def user(request_id: str, links: list[ModuleSpan] = LINKS) -> Request:
    """A request of A and B that may be served exactly."""
    found = msgspec.structs.replace(PLAN, links=tuple(links))
    return planned_request(request_id, found, range(NUM_TOKENS))


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
    """Lets an idle engine work; returns the modules that are encoded, one a step."""
    encoded: list[Any] = []
    while new := engine.residency.encode_for_nobody(is_idle=True):
        engine.queue[:0] = new
        encoded += [engine.residency.get(request).spec.key for request in new]
        engine.run_encodes()
    return encoded


def test_a_combination_that_recurs_is_promoted() -> None:
    engine = promoting_engine()
    serve(engine, "1")
    assert promote(engine) == []
    serve(engine, "2")
    assert promote(engine) == KEYS
    assert promote(engine) == []
    third = serve(engine, "3")
    assert third.prompt_token_ids == list(third.all_token_ids) == ORDER
    prompt = ModulePrompt.of(PLAN, range(NUM_TOKENS))
    assert engine.residency.promotions.num_ready(prompt, third) == len(KEYS)
    assert engine.residency.metrics.take().data["promoted"] == 1
    stats = engine.residency.store.stats
    assert (stats.num_promotions, stats.num_promoted_requests) == (1, 1)


def test_a_promotion_that_was_interrupted_goes_on_later() -> None:
    engine = promoting_engine()
    serve(engine, "1")
    serve(engine, "2")
    (new,) = engine.residency.encode_for_nobody(is_idle=True)
    assert engine.residency.get(new).spec.key == KEYS[0]
    assert engine.residency.encode_for_nobody(is_idle=True) == []
    engine.queue.insert(0, new)
    engine.residency.for_nobody.interrupt()
    abort_encodes(engine)
    assert promote(engine) == KEYS


def test_what_was_begun_goes_on_and_then_comes_what_is_asked_for_most() -> None:
    engine = promoting_engine(num_blocks=65)
    chains = [
        placed([span(module(f"{name} a", 9)), span(module(f"{name} b", 6))])
        for name in ("begun", "often", "last")
    ]
    for chain, num_times in zip(chains, (2, 4, 3), strict=True):
        for number in range(num_times):
            engine.add(user(f"{chain[0].key.hex()}-{number}", chain))
        engine.queue.clear()
        if chain is chains[0]:
            (new,) = engine.residency.encode_for_nobody(is_idle=True)
            engine.queue.insert(0, new)
            engine.run_encodes()
    order = [chains[0][1], *chains[1], *chains[2]]
    assert promote(engine) == [link.key for link in order]


def test_nothing_is_encoded_with_weights_that_are_gone() -> None:
    engine = promoting_engine()
    for request_id in ("1", "2"):
        serve(engine, request_id).lora_request = LoRARequest("a", 1, "/nowhere")
    engine.residency.adapters.reloaded(2)
    engine.residency.follow_adapters([])
    assert engine.residency.for_nobody
    engine.residency.adapters.reloaded(1)
    engine.residency.follow_adapters([])
    assert not engine.residency.for_nobody


def test_what_does_not_fit_its_share_is_not_promoted() -> None:
    engine = promoting_engine(num_blocks=9)
    serve(engine, "1")
    serve(engine, "2")
    assert promote(engine) == []


def test_a_promotion_that_failed_is_given_up() -> None:
    engine = promoting_engine()
    serve(engine, "1")
    serve(engine, "2")
    engine.queue[:0] = engine.residency.encode_for_nobody(is_idle=True)
    abort_encodes(engine)
    assert engine.residency.encode_for_nobody(is_idle=True) == []


def test_a_promotion_that_loses_a_link_for_each_it_gets_is_given_up() -> None:
    engine = promoting_engine()
    serve(engine, "1")
    serve(engine, "2")
    engine.queue[:0] = engine.residency.encode_for_nobody(is_idle=True)
    engine.run_encodes()
    assert engine.residency.store.lookup(KEYS[0]) is not None
    engine.residency.store.evict(KEYS[0])
    assert engine.residency.encode_for_nobody(is_idle=True) == []


def test_an_evicted_module_is_promoted_again() -> None:
    engine = promoting_engine()
    serve(engine, "1")
    serve(engine, "2")
    promote(engine)
    engine.residency.store.evict(KEYS[0])
    before = engine.residency.store.stats.num_promoted_requests
    fourth = serve(engine, "4")
    assert engine.residency.store.stats.num_promoted_requests == before
    assert KEYS[0] in promote(engine)
    assert fourth.sampling_params.extra_args is None


def test_a_request_that_begins_like_a_promoted_one_reads_modules_behind_its_links() -> None:
    engine = promoting_engine()
    serve(engine, "1")
    serve(engine, "2")
    promote(engine)
    stats = engine.residency.store.stats
    other = placed([LINKS[0], span(module("exact other", 6))])
    engine.add(user("3", other))
    modular = engine.residency.requests["3"]
    assert [found.key for found in modular.sequence.spans] == [LINKS[0].key, B.key]
    assert modular.sequence.num_cached_tokens == 15
    assert (stats.num_promoted_requests, stats.num_partly_promoted_requests) == (0, 1)
    # Nothing is encoded for it, and it counts for the whole combination.
    assert engine.prepare() == []
    engine.run_encode(engine.queue[-1])
    assert engine.residency.metrics.take().data["partly_promoted"] == 1
    engine.add(user("4", other))
    engine.run_encode(engine.queue[-1])
    assert promote(engine) == [other[1].key]
    engine.add(user("5", other))
    assert (stats.num_promoted_requests, stats.num_partly_promoted_requests) == (1, 2)


def test_links_that_are_as_good_as_what_is_planned_are_not_read() -> None:
    engine = promoting_engine()
    serve(engine, "1")
    serve(engine, "2")
    promote(engine)
    other = placed([LINKS[0], span(module("exact other", 6))])
    found = msgspec.structs.replace(PLAN, links=tuple(other), num_exact_links=1)
    engine.add(planned_request("3", found, range(NUM_TOKENS)))
    keys = [read.key for read in engine.residency.requests["3"].sequence.spans]
    assert keys == [A.key, B.key]


def test_a_client_is_told_what_is_read_behind_the_links() -> None:
    engine = promoting_engine()
    serve(engine, "1")
    serve(engine, "2")
    promote(engine)
    request = user("3", placed([LINKS[0], span(module("exact other", 6))]))
    request.sampling_params.extra_args[DETAIL_KEY] = {
        "modules": [("a", "exact"), ("b", "primed")],
        "links": [("a (link)", "exact"), ("b (link)", "exact")],
    }
    engine.add(request)
    told = engine.residency.requests["3"].account.modules
    assert told == [("a (link)", "exact"), ("b", "primed")]


def test_parameters_that_requests_share_keep_the_plan() -> None:
    """Of several samples of a prompt, whose parameters vLLM copies but for what is in them."""
    engine, first, second = promoting_engine(), user("1"), user("2")
    second.sampling_params = first.sampling_params
    engine.add(first, second)
    assert {"1", "2"} <= engine.residency.requests.keys()
    assert first.sampling_params.extra_args is second.sampling_params.extra_args is None


def test_those_that_wait_to_be_encoded_are_bounded_by_their_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = promoting_engine()
    found = engine.residency.promotions
    for number in range(20):
        links = placed([span(module("exact a", 9)), span(module(str(number), 6))])
        for turn in range(2):
            engine.add(user(f"{number}-{turn}", links))
        size = promotions._num_tokens(next(iter(found._candidates.values())))
        assert size > NUM_TOKENS
        monkeypatch.setattr(promotions, "MAX_NUM_CANDIDATE_TOKENS", 3 * size)
    assert len(found._candidates) == 3
