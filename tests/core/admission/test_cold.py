"""Modules that are nowhere, and prompts that compute them themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from vllm.lora.request import LoRARequest
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.request import Request, RequestStatus

from tests.core.plans import BLOCK_SIZE, module, placed, plan, planned_request, span
from vllm_promptcache.core.admission import cold
from vllm_promptcache.core.reports.usage import module_usage
from vllm_promptcache.core.request import EncodeRequest, ModularRequest
from vllm_promptcache.core.residency import ModuleResidency
from vllm_promptcache.sequence.runs import Run, count
from vllm_promptcache.sequence.spec import ModuleSpec
from vllm_promptcache.steps.step import WorkerReport

ROOT, A, B = module("root", 6), module("a", 9), module("b", 7)


class Engine:
    """A residency whose steps run nothing."""

    def __init__(self, **options: Any) -> None:
        self.pool = BlockPool(65, enable_caching=True, hash_block_size=BLOCK_SIZE)
        options = {"encode_after": 2} | options
        self.residency = ModuleResidency(self.pool, BLOCK_SIZE, **options)
        self.queue: list[Request] = []

    def add(
        self, name: str, *specs: ModuleSpec, num_before: int = 0, **fields: Any
    ) -> ModularRequest:
        """Adds a request for some modules one behind the other, and 3 tokens behind them."""
        read = placed(map(span, specs))
        end = sum(spec.num_kept_tokens for spec in specs)
        new = [Run(end + num_before, 3)]
        found = plan(read, specs, new, **fields)
        request = planned_request(name, found, range(count(found.positions)))
        self.residency.add(request)
        assert not self.residency.rejected
        self.queue.append(request)
        return self.residency.requests[name]

    def prepare(self) -> list[ModuleSpec]:
        """The modules whose encodes are started."""
        new = self.residency.prepare(self.queue, 0)
        self.queue[:0] = new
        started = map(self.residency.get, new)
        return [encode.spec for encode in started if isinstance(encode, EncodeRequest)]

    def idle(self) -> list[bytes]:
        """Ends all requests, and lets the engine encode what it likes; returns keys in order."""
        self.queue.clear()
        encoded = []
        while new := self.residency.encode_for_nobody(is_idle=True):
            for request in new:
                encode = self.residency.get(request)
                assert isinstance(encode, EncodeRequest)
                self.make_resident(encode.spec)
                self.end(request)
                encoded.append(encode.spec.key)
        return encoded

    def end(self, request: Request) -> None:
        request.status = RequestStatus.FINISHED_ABORTED
        self.residency.finish(request, [])

    def make_resident(self, *specs: ModuleSpec) -> None:
        for spec in specs:
            blocks = self.pool.get_new_blocks(-(-spec.num_kept_tokens // BLOCK_SIZE))
            self.residency.store.commit(spec.key, blocks, spec.num_kept_tokens)
            self.pool.free_blocks(reversed(blocks))


def keys(modular: ModularRequest) -> list[bytes]:
    return [one.key for one in modular.sequence.spans]


def told(
    modular: ModularRequest, paths: Sequence[str], read_as: str = "primed"
) -> list[tuple[str, int, str, str]]:
    modular.account.modules = [(path, read_as) for path in paths]
    usage = module_usage(modular)
    assert usage is not None
    return [(one["path"], one["tokens"], one["status"], one["read_as"]) for one in usage]


def test_the_first_prompt_computes_its_modules_and_the_second_has_them_encoded() -> None:
    engine = Engine()
    first = engine.add("1", A, B)
    assert engine.prepare() == []
    assert keys(first) == []
    assert first.sequence.position_runs == (Run(0, 19),)
    assert list(first.request.all_token_ids) == list(range(19))
    assert engine.residency.map(first) == []
    assert told(first, ["a", "b"]) == [
        ("a", 9, "cold", "exact"),
        ("b", 7, "cold", "exact"),
    ]
    engine.queue.clear()
    second = engine.add("2", A, B)
    assert engine.prepare() == [A, B]
    assert keys(second) == [A.key, B.key]


def test_it_is_counted_when_the_prompt_is_admitted() -> None:
    engine = Engine()
    modular = engine.add("1", A, B)
    engine.prepare()
    engine.residency.metrics.admitted(modular)
    stats = engine.residency.metrics.take()
    assert stats is not None
    assert stats.data["cold"] == 2
    assert stats.data["tokens_computed"] == 19
    assert stats.data["misses"] == {"schema": 0}


def test_how_many_prompts_have_to_ask_is_an_option() -> None:
    engine = Engine(encode_after=3)
    for number in range(2):
        engine.add(str(number), A)
        assert engine.prepare() == []
    engine.add("3", A)
    assert engine.prepare() == [A]
    engine = Engine(encode_after=1)
    engine.add("1", A)
    assert engine.prepare() == [A]


def test_what_is_resident_is_read_all_the_same() -> None:
    engine = Engine()
    engine.make_resident(B)
    modular = engine.add("1", A, B)
    assert engine.prepare() == []
    assert keys(modular) == [B.key]
    assert modular.sequence.position_runs == (Run(0, 9), Run(16, 3))
    assert modular.account.span_numbers == [1]
    assert told(modular, ["a", "b"]) == [
        ("a", 9, "cold", "repaired"),
        ("b", 7, "hit", "primed"),
    ]
    assert {one[-1] for one in told(modular, ["a", "b"], "exact")} == {"exact"}


def test_without_other_modules_the_schemas_own_text_is_computed_too() -> None:
    engine = Engine()
    engine.make_resident(ROOT)
    cold = engine.add("1", ROOT, A, has_root=True)
    engine.make_resident(B)
    mixed = engine.add("2", ROOT, B, has_root=True)
    alone = engine.add("3", ROOT, has_root=True)
    assert engine.prepare() == []
    assert keys(cold) == []
    assert keys(mixed) == [ROOT.key, B.key]
    assert keys(alone) == [ROOT.key]


def test_what_was_encoded_for_a_while_and_is_gone_is_encoded_again() -> None:
    engine = Engine()
    engine.make_resident(A)
    engine.add("1", A)
    engine.residency.store.evict(A.key)
    engine.queue.clear()
    engine.add("2", A)
    assert engine.prepare() == [A]


def test_what_is_being_encoded_is_waited_for() -> None:
    engine = Engine()
    engine.add("1", A, is_warming=True)
    assert engine.prepare() == [A]
    modular = engine.add("2", A)
    assert engine.prepare() == []
    assert keys(modular) == [A.key]


def test_the_disk_is_looked_at_first() -> None:
    engine = Engine(has_disk=True)
    modular = engine.add("1", A)
    assert engine.prepare() == []
    assert keys(modular) == [A.key]
    engine.residency.tiers.fetched(WorkerReport([], [A.key], num_clears=0, can_relocate=True))
    assert engine.prepare() == []
    assert keys(modular) == []


def test_tokens_to_repair_are_those_of_what_is_read() -> None:
    engine = Engine()
    engine.make_resident(B)
    mixed = engine.add("1", A, B, attended=(2, 1))
    cold = engine.add("2", module("c", 8), attended=(2,))
    engine.prepare()
    assert mixed.attended == [1]
    assert not mixed.request.block_hashes
    assert not cold.attended
    assert len(cold.request.block_hashes) == 11 // BLOCK_SIZE


def test_a_prompt_that_would_take_too_many_rows_waits_for_encodes() -> None:
    engine = Engine(max_rows=1)
    engine.make_resident(B)
    mixed, cold = engine.add("1", A, B), engine.add("2", A)
    assert engine.prepare() == [A]
    assert keys(mixed) == [A.key, B.key]
    engine = Engine(max_rows=1)
    cold = engine.add("1", A)
    assert engine.prepare() == []
    assert keys(cold) == []


@pytest.mark.parametrize("num_before", [0, 5])
def test_a_request_that_has_begun_stays_as_it_is(num_before: int) -> None:
    engine = Engine()
    engine.make_resident(A)
    modular = engine.add("1", A, num_before=num_before)
    modular.request.num_preemptions = 1
    engine.residency.store.evict(A.key)
    assert engine.prepare() == [A]
    assert keys(modular) == [A.key]


def test_cold_prompts_share_what_they_compute_at_the_same_positions() -> None:
    engine = Engine()
    first, same, moved = (
        engine.add(name, module(name, 9), num_before=num_before)
        for name, num_before in (("1", 0), ("2", 0), ("3", 2))
    )
    engine.prepare()
    assert first.request.block_hashes == same.request.block_hashes
    # The last block has tokens behind the gap.
    assert moved.request.block_hashes[:2] == first.request.block_hashes[:2]
    assert moved.request.block_hashes[2] != first.request.block_hashes[2]


def test_an_idle_engine_encodes_what_prompts_computed() -> None:
    engine = Engine()
    engine.add("1", A)
    engine.prepare()
    engine.add("2", ROOT, B, has_root=True)
    engine.prepare()
    assert engine.residency.encode_for_nobody(is_idle=False) == []
    assert engine.idle() == [ROOT.key, B.key, A.key]
    assert engine.idle() == []
    third = engine.add("3", A, B)
    assert engine.prepare() == []
    assert keys(third) == [A.key, B.key]


def test_what_is_there_meanwhile_is_not_encoded() -> None:
    engine = Engine()
    engine.add("1", A, B)
    engine.prepare()
    engine.make_resident(A)
    assert engine.idle() == [B.key]


def test_what_was_given_up_comes_later() -> None:
    engine = Engine()
    engine.add("1", A, B)
    engine.prepare()
    engine.queue.clear()
    (new,) = engine.residency.encode_for_nobody(is_idle=True)
    assert engine.residency.encode_for_nobody(is_idle=True) == []
    engine.residency.for_nobody.interrupt()
    engine.end(new)
    assert engine.idle() == [A.key, B.key]


def test_nothing_gives_way_to_what_nobody_waits_for() -> None:
    engine = Engine()
    engine.make_resident(*(module(str(number), 5 * BLOCK_SIZE) for number in range(12)))
    engine.add("1", A, B)
    engine.prepare()
    # Of 64 blocks 60 hold modules; A takes 3, B would take 2.
    assert engine.idle() == [A.key]


def test_nothing_is_encoded_with_weights_that_are_gone() -> None:
    engine = Engine()
    modular = engine.add("1", A)
    engine.prepare()
    modular.request.lora_request = LoRARequest("a", 1, "/nowhere")
    engine.residency.adapters.reloaded(1)
    engine.queue.clear()
    engine.residency.follow_adapters([])
    assert engine.idle() == []


def test_what_is_begun_with_such_weights_does_not_come_again() -> None:
    engine = Engine()
    modular = engine.add("1", A)
    engine.prepare()
    engine.queue.clear()
    (new,) = engine.residency.encode_for_nobody(is_idle=True)
    modular.request.lora_request = LoRARequest("a", 1, "/nowhere")
    engine.residency.adapters.reloaded(1)
    engine.residency.follow_adapters([])
    engine.residency.for_nobody.interrupt()
    engine.end(new)
    assert engine.idle() == []


def test_only_the_newest_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold, "MAX_NUM_LEFT_OUT", 2)
    engine = Engine()
    for name in ("a", "b", "c"):
        engine.add(name, module(name, 9))
        engine.prepare()
    assert engine.idle() == [module("c", 9).key, module("b", 9).key]
