"""A request that is repaired by attention: what it waits for, and what it is served as."""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np
import pytest
from vllm.v1.request import Request, RequestStatus

from tests.core.plans import plan, planned_request, span
from tests.core.test_residency import Engine
from vllm_promptcache.core.private_blocks import order_tokens
from vllm_promptcache.core.repair import memory as repair_memory
from vllm_promptcache.core.repair.attended import CHUNK_SIZE
from vllm_promptcache.core.request import ModularRequest, ProbeRequest
from vllm_promptcache.sequence.block_table import BlockTable
from vllm_promptcache.sequence.codec import Plan
from vllm_promptcache.sequence.prompt import ModulePrompt
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.sequence.spans import ModuleSpan, SequencePlan
from vllm_promptcache.sequence.spec import ModuleSpec

NUM_NEW = 3


def at(name: str, num_tokens: int, start: int) -> ModuleSpec:
    """A module at some positions; its tokens are their positions."""
    return ModuleSpec(
        hashlib.sha256(name.encode()).digest(),
        SequencePlan((), (Run(start, num_tokens),)),
        tuple(range(start, start + num_tokens)),
        (Run(0, num_tokens),),
    )


def placed_span(spec: ModuleSpec) -> ModuleSpan:
    return msgspec.structs.replace(span(spec), positions=spec.sequence.position_runs)


A, B, C = at("a", 9, 0), at("b", 40, 20), at("c", 17, 60)
SPECS = (A, B, C)
SPANS = tuple(map(placed_span, SPECS))
SEQUENCE = SequencePlan(SPANS, (Run(1000, NUM_NEW),))
# In blocks of 4: full blocks of all, their tails, new tokens.
ORDER = [*range(8), *range(20, 60), *range(60, 76), 8, 76, 1000, 1001, 1002]


def planned(*more: int, attended: tuple[int, ...] = (0, 16, 4)) -> tuple[Plan, list[int]]:
    """A plan of all modules of which about 20 tokens of two are to be repaired, and its tokens."""
    found = plan(SPANS, SPECS, (Run(1000, NUM_NEW + len(more)),), attended=attended)
    return found, [*sorted(ORDER), *more]


def user(request_id: str, *more: int, attended: tuple[int, ...] = (0, 16, 4)) -> Request:
    """A request with such a plan."""
    return planned_request(request_id, *planned(*more, attended=attended))


def prepare(engine: Engine) -> list[str]:
    """Starts what waiting requests need; returns the ids of the engine's own new requests."""
    new = engine.residency.prepare(engine.queue, 0)
    engine.queue[:0] = new
    return [request.request_id for request in new]


def attention(*positions: int) -> np.ndarray:
    """High for the tokens at some positions, as a worker tells it for the whole sequence."""
    return np.array([float(token in positions) for token in ORDER], dtype=np.float32)


def probed(engine: Engine, *positions: int) -> ModularRequest:
    """A request whose modules are resident and whose probe has been answered."""
    request = user("user")
    engine.add(request)
    prepare(engine)
    engine.run_encodes()
    engine.residency.probes.answer({"prompt-module-probe-0": attention(*positions)})
    modular = engine.residency.get(request)
    assert modular is not None
    return modular


def test_a_probe_goes_ahead_of_the_request_and_tells_where_its_tokens_are() -> None:
    engine, request = Engine(60), user("user")
    engine.add(request)
    assert prepare(engine)[-1] == "prompt-module-probe-0"
    probe = engine.queue[3]
    assert isinstance(engine.residency.get(probe), ProbeRequest)
    for encode in engine.queue[:3]:
        engine.run_encode(encode)
    assert engine.residency.holds_back(request)
    step = engine.run_encode(probe)
    (observed,) = step.observed
    assert (observed.request_id, observed.num_tokens) == ("prompt-module-probe-0", 3)
    assert len(set(observed.slots.tolist())) == len(ORDER)
    assert prepare(engine) == []
    assert engine.residency.take_ended_internal() >= {"prompt-module-probe-0"}


def test_the_most_attended_chunks_are_computed_in_their_place() -> None:
    engine = Engine(60)
    # In the second chunk of B; one of A would count most, but A has seen all there is.
    modular = probed(engine, 0, 1, 2, 40)
    assert modular.account.span_numbers == [0, 1, 2]
    assert modular.account.repaired == {1}
    runs = [one.runs for one in modular.sequence.spans]
    assert runs == [(Run(0, 9),), (Run(0, 16), Run(32, 8)), (Run(0, 17),)]
    assert modular.sequence.position_runs == (Run(36, CHUNK_SIZE), Run(1000, NUM_NEW))
    order = [*range(8), *range(20, 36), *range(52, 60), *range(60, 76), 8, 76]
    assert modular.request.prompt_token_ids == [*order, *range(36, 52), 1000, 1001, 1002]
    assert modular.request.all_token_ids[:3] == [0, 1, 2]
    inner = modular.table.inner
    assert inner.blocks == (Run(0, 6),)  # of A and the begin of B
    assert [group.num_visible for group in inner.groups] == [6]
    assert not engine.residency.holds_back(modular.request)
    assert len(modular.request.block_hashes) == modular.request.num_tokens // 4


def test_a_repair_that_takes_too_many_rows_of_attention_is_left_out() -> None:
    engine = Engine(60)
    engine.residency.probes.max_rows = 1
    modular = probed(engine, 0, 1, 2, 40)
    assert (modular.sequence, modular.attended) == (SEQUENCE, ())
    assert not engine.residency.holds_back(modular.request)


def test_a_later_turn_is_repaired_as_the_first_one() -> None:
    engine = Engine(60)
    first = probed(engine, 40)
    second, other = user("second", 7, 8), user("other", 7)
    other.prompt_token_ids[-2] = 5  # of the text
    engine.add(second, other)
    repaired = engine.residency.get(second)
    assert repaired.sequence.spans == first.sequence.spans
    assert not engine.residency.holds_back(second)
    assert engine.residency.holds_back(other)
    private = first.table.num_shared_blocks
    assert second.block_hashes[private] == first.request.block_hashes[private]


@pytest.mark.parametrize("difference", ["salt", "share", "option"])
def test_what_one_was_told_is_not_for_others(difference: str) -> None:
    engine = Engine(60)
    probed(engine, 40)
    second = user("second", 7, attended=(0, 8, 4) if difference == "share" else (0, 16, 4))
    if difference == "salt":
        second.cache_salt = "tenant"
    second.skip_reading_prefix_cache = difference == "option"
    engine.add(second)
    assert engine.residency.holds_back(second)


def test_without_an_answer_a_prompt_is_served_as_it_is() -> None:
    engine, request = Engine(60), user("user")
    engine.add(request)
    prepare(engine)
    engine.run_encodes()
    assert engine.residency.holds_back(request)
    assert prepare(engine) == []
    assert not engine.residency.holds_back(request)
    assert engine.residency.get(request).sequence == SEQUENCE
    assert request.prompt_token_ids == ORDER


def test_a_probe_whose_request_has_ended_is_an_orphan() -> None:
    engine, request = Engine(60), user("user")
    engine.add(request)
    prepare(engine)
    request.status = RequestStatus.FINISHED_ABORTED
    engine.residency.finish(request, [])
    *encodes, probe = engine.residency.take_orphans()
    assert (len(encodes), probe) == (3, "prompt-module-probe-0")
    engine.residency.probes.answer({"prompt-module-probe-0": attention(40)})


def test_a_probe_that_is_preempted_and_runs_again_answers_then() -> None:
    engine, request = Engine(60), user("user")
    engine.add(request)
    prepare(engine)
    probe = engine.queue[3]
    engine.residency.preempted(probe)
    assert prepare(engine) == []
    assert engine.residency.holds_back(request)
    engine.run_encodes()
    engine.residency.probes.answer({probe.request_id: attention(40)})
    assert prepare(engine) == []
    assert engine.residency.get(request).account.span_numbers == [0, 1, 2]


def test_a_probe_that_is_preempted_with_its_last_step_in_flight_does_not_run_for_nobody() -> None:
    """Under asynchronous scheduling the answer comes all the same, and its asker goes on."""
    engine, request = Engine(60), user("user")
    engine.add(request)
    prepare(engine)
    probe = engine.queue[3]
    engine.run_encodes()
    engine.residency.preempted(probe)
    engine.residency.probes.answer({probe.request_id: attention(40)})
    assert engine.residency.take_orphans() == [probe.request_id]


def test_those_that_wait_for_a_rejected_encode_are_rejected_by_way_of_the_probe() -> None:
    engine, request = Engine(60), user("user")
    engine.add(request)
    prepare(engine)
    engine.residency.rejected[engine.queue[0].request_id] = "why"
    assert engine.residency.take_rejected()["user"] == "why"


def remembered(*new: int, attended: int = 16) -> ModularRequest:
    """A request as it is before it is repaired."""
    found, token_ids = planned(*new)
    prompt = ModulePrompt.of(found, token_ids)
    request = planned_request(str(new), found, token_ids)
    made = ModularRequest(request, prompt, BlockTable.of(found.sequence, 4))
    made.attended = (0, attended, 0)
    order_tokens(made)
    return made


def test_few_prompts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_memory, "MAX_NUM_PROMPTS", 2)
    memory, chosen = repair_memory.RepairMemory(), np.arange(len(ORDER) - NUM_NEW) % 3 == 0
    for last in (1, 2, 3):
        memory.add(remembered(last), chosen)
    assert memory.find(remembered(1)) is None
    for last in (2, 3):
        found = memory.find(remembered(last, 7))
        assert found is not None
        assert np.array_equal(found, chosen)
    # Their first bytes are the same.
    assert memory.find(remembered(258)) is None
    assert memory.find(remembered(2, attended=8)) is None


def test_what_is_remembered_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of long texts, of many combinations of modules, and of a text larger than all of it."""
    monkeypatch.setattr(repair_memory, "MAX_BYTES", 100_000)
    memory, chosen = repair_memory.RepairMemory(), np.ones(len(ORDER) - NUM_NEW, dtype=np.bool_)
    for combination in range(40):
        for last in range(repair_memory.MAX_NUM_PROMPTS):
            text = [last] * 2000
            memory.add(remembered(*text, attended=combination), chosen)
            assert memory.num_bytes <= 100_000
    assert memory.num_bytes > 80_000
    assert memory.find(remembered(*text, attended=combination)) is not None
    assert memory.find(remembered(*text, attended=0)) is None
    memory.add(remembered(*[1] * 30_000, attended=99), chosen)
    assert memory.num_bytes <= 100_000
