"""Residency on vLLM's own block pool: who is encoded, held, admitted, given up."""

import pytest
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.request import RequestStatus

from vllm_promptcache.core.residency import ModuleResidency
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.sequence.spans import ModuleSpan
from vllm_promptcache.steps.step import WorkerReport
from vllm_promptcache.store import PIN_OWNER, PinnedModule

from .plans import BLOCK_SIZE, module, raw_request, read_module, request, span

A, B = module("a", 9), module("b", 6)


class Engine:
    """A residency with a queue, and steps that end every encode that is ready."""

    def __init__(self, num_blocks=33, **options):
        self.pool = BlockPool(num_blocks, enable_caching=True, hash_block_size=BLOCK_SIZE)
        self.residency = ModuleResidency(self.pool, BLOCK_SIZE, **options)
        self.queue = []
        self.num_running = 0

    def add(self, *requests):
        for new in requests:
            self.residency.add(new)
            self.queue.append(new)

    def prepare(self):
        """Returns the modules whose encodes were started."""
        new = self.residency.prepare(self.queue, self.num_running)
        self.queue[:0] = new
        return [self.residency.get(encode).spec for encode in new]

    def run_encode(self, request, status=RequestStatus.FINISHED_LENGTH_CAPPED):
        """Admits an encode, computes it in one step and ends it."""
        encode = self.residency.get(request)
        shared = self.residency.map(encode)
        self.pool.touch(shared)
        blocks = shared + self.pool.get_new_blocks(encode.num_own_blocks)
        ids = [block.block_id for block in blocks]
        self.residency.admit(request, ids)
        num_tokens = request.num_prompt_tokens - encode.sequence.num_cached_tokens
        request.num_computed_tokens = encode.sequence.num_cached_tokens
        step = self.residency.end_step({request.request_id: num_tokens}, lambda _: ids)
        request.status = status
        self.queue.remove(request)
        self.residency.finish(request, blocks)
        self.pool.free_blocks(reversed(blocks))
        return step

    def run_encodes(self):
        for waiting in [r for r in self.queue if r.request_id.startswith("prompt-module-")]:
            self.run_encode(waiting)


def test_missing_modules_are_encoded_once_for_all_that_wait():
    engine = Engine()
    engine.add(request("1", [span(A), span(B)], [A, B]), request("2", [span(B)], [A, B]))
    assert engine.prepare() == [A, B]
    assert engine.prepare() == []
    assert engine.residency.map(engine.residency.requests["1"]) is None
    engine.run_encodes()
    blocks = engine.residency.map(engine.residency.requests["1"])
    assert len(blocks) == 9 // BLOCK_SIZE + 6 // BLOCK_SIZE
    assert engine.prepare() == []
    assert engine.residency.encodes.num_started == 2


def test_a_context_is_encoded_before_what_needs_it():
    engine = Engine()
    nested = module("nested", 5, context=(span(A, 7),))
    engine.add(request("1", [span(nested)], [A, nested]))
    assert engine.prepare() == [A, nested]
    context, encode = engine.queue[:2]
    assert engine.residency.map(engine.residency.get(encode)) is None
    engine.run_encode(context)
    step = engine.run_encode(encode)
    # 7 context tokens: a block by reference, 3 copied; the module moves to the front of its block.
    assert len(step.loads.source) == 3
    assert len(step.stores.source) == 5
    assert engine.residency.store.lookup(nested.key).num_tokens == 5


def test_tails_are_copied_behind_the_shared_blocks():
    engine = Engine()
    engine.add(user := request("1", [span(A), span(B)], [A, B]))
    engine.prepare()
    engine.run_encodes()
    modular = engine.residency.get(user)
    shared = engine.residency.map(modular)
    table = [block.block_id for block in shared] + [30, 31]
    engine.residency.admit(user, table)
    step = engine.residency.end_step({}, lambda _: table)
    a, b = (engine.residency.store.lookup(spec.key).block_ids for spec in (A, B))
    assert step.loads.source.tolist() == [a[2] * 4, b[1] * 4, b[1] * 4 + 1]
    assert step.loads.target.tolist() == [30 * 4, 30 * 4 + 1, 30 * 4 + 2]


def test_waiting_requests_pin_and_admitted_or_finished_ones_do_not():
    engine = Engine()
    engine.add(user := request("1", [span(A)], [A]))
    engine.prepare()
    engine.run_encodes()
    engine.prepare()
    assert len(engine.residency.store.pinned_block_ids) == 3
    user.status = RequestStatus.FINISHED_ABORTED
    engine.residency.finish(user, [])
    assert engine.residency.store.pinned_block_ids == []
    assert not engine.residency.requests


def test_an_encode_that_nobody_waits_for_is_an_orphan():
    engine = Engine()
    engine.add(first := request("1", [span(A)], [A]), second := request("2", [span(A)], [A]))
    engine.prepare()
    encode = engine.queue[0]
    engine.residency.finish(first, [])
    assert engine.residency.encodes.take_orphans() == []
    engine.residency.finish(second, [])
    assert engine.residency.encodes.take_orphans() == [encode.request_id]


def test_an_aborted_or_preempted_encode_publishes_nothing():
    engine = Engine()
    engine.add(request("1", [span(A)], [A]))
    engine.prepare()
    engine.run_encode(engine.queue[0], RequestStatus.FINISHED_ABORTED)
    assert engine.residency.store.lookup(A.key) is None
    assert engine.prepare() == [A]
    encode = engine.queue[0]
    engine.residency.get(encode).written_blocks = [1, 2, 3]
    engine.residency.preempted(encode)
    encode.status = RequestStatus.FINISHED_LENGTH_CAPPED
    engine.residency.finish(encode, engine.pool.blocks[1:4])
    assert engine.residency.store.lookup(A.key) is None


def test_blocks_other_than_those_that_were_written_are_not_published():
    engine = Engine()
    engine.add(request("1", [span(A)], [A]))
    engine.prepare()
    encode = engine.queue[0]
    engine.residency.get(encode).written_blocks = [1, 2, 3]
    encode.status = RequestStatus.FINISHED_LENGTH_CAPPED
    engine.residency.finish(encode, engine.pool.blocks[2:5])
    assert engine.residency.store.lookup(A.key) is None


def test_requests_behind_one_that_waits_for_room_are_held_back():
    engine = Engine(num_blocks=9)
    engine.num_running = 1
    taken = engine.pool.get_new_blocks(4)
    engine.add(big := request("big", [span(A)], [A]), small := raw_request("small", 2, None))
    assert engine.prepare() == []
    assert engine.residency.holds_back(big)
    assert engine.residency.holds_back(small)
    engine.pool.free_blocks(taken)
    assert engine.prepare() == [A]
    assert not engine.residency.holds_back(small)


def test_what_can_never_fit_is_rejected_with_the_numbers():
    engine = Engine(num_blocks=5)
    engine.add(request("1", [span(A), span(B)], [A, B]))
    assert engine.residency.take_rejected() == {
        "1": "18 tokens with their modules need 7 KV cache blocks of 4 tokens, the cache has 4"
    }


def test_a_preempted_request_that_outgrew_the_pool_is_rejected():
    engine = Engine(num_blocks=8)
    engine.add(user := request("1", [span(A), span(B)], [A, B]))
    assert engine.residency.take_rejected() == {}
    user.append_output_token_ids([7] * 8)
    engine.residency.preempted(user)
    assert "26 tokens with their modules need 9" in engine.residency.take_rejected()["1"]


@pytest.mark.parametrize(
    "plan", [None, 7, b"", b"\xff", b"\x93\x01", "text", [1], {"a": 1}], ids=repr
)
def test_a_malformed_plan_is_rejected_and_raises_nothing(plan):
    engine = Engine()
    bad = raw_request("1", 5, b"" if plan is None else plan)
    engine.add(bad)
    assert "malformed prompt plan" in engine.residency.take_rejected()["1"]


def test_a_plan_that_lacks_a_module_of_a_context_is_rejected_with_its_waiter():
    engine = Engine()
    nested = module("nested", 5, context=(span(A),))
    engine.add(request("1", [span(nested)], [nested]))
    engine.prepare()
    rejected = engine.residency.take_rejected()
    assert "1" in rejected
    assert all("malformed" in reason for reason in rejected.values())


def test_a_span_that_does_not_fit_its_module_is_rejected():
    engine = Engine()
    engine.add(user := request("1", [ModuleSpan(A.key, 12, (Run(0, 12),))], [A]))
    engine.prepare()
    engine.run_encodes()
    assert engine.residency.map(engine.residency.get(user)) is None
    assert "1" in engine.residency.take_rejected()


def test_a_module_is_encoded_anew_however_often_its_encode_came_to_nothing():
    engine = Engine()
    engine.add(request("1", [span(A)], [A]))
    for _ in range(100):
        assert engine.prepare() == [A]
        engine.run_encode(engine.queue[0], RequestStatus.FINISHED_ABORTED)
    assert engine.residency.take_rejected() == {}


def test_pins_keep_a_module_from_eviction_but_no_request_from_its_blocks():
    engine = Engine(num_blocks=9)
    engine.add(request("1", [span(A)], [A]))
    engine.prepare()
    engine.run_encodes()
    residency = engine.residency
    residency.pins.replace("s", [PinnedModule(A.key, 3)])
    residency.finish(engine.queue.pop(), [])
    large = raw_request("large", 6 * BLOCK_SIZE, None)
    engine.queue.append(large)

    engine.num_running = 1  # whoever runs may end and free blocks
    engine.prepare()
    assert engine.pool.get_num_free_blocks() == 5
    engine.num_running = 0
    engine.prepare()
    assert engine.pool.get_num_free_blocks() == 8


def test_pins_that_do_not_stand_in_the_way_stay():
    engine = Engine(num_blocks=9)
    engine.add(request("1", [span(A)], [A]))
    engine.prepare()
    engine.run_encodes()
    engine.residency.pins.replace("s", [PinnedModule(A.key, 3)])
    engine.queue.append(raw_request("small", 4 * BLOCK_SIZE, None))
    engine.prepare()
    assert A.key in engine.residency.store.held(PIN_OWNER)


def test_an_evicted_module_comes_back_from_host_memory():
    engine = Engine(num_blocks=9, num_host_blocks=4)
    engine.add(request("1", [span(A)], [A]))
    engine.prepare()
    engine.run_encodes()
    residency = engine.residency
    residency.finish(engine.queue.pop(), [])
    old = residency.store.lookup(A.key).block_ids
    engine.pool.free_blocks(engine.pool.get_new_blocks(8))
    (save,) = residency.end_step({}, lambda _: []).moves
    assert (save.action, list(save.module.block_ids), save.module.num_tokens) == ("save", old, 9)

    engine.add(request("2", [span(A)], [A]))
    assert engine.prepare() == []
    blocks = residency.map(residency.requests["2"])
    (restore,) = residency.end_step({}, lambda _: []).moves
    assert restore.action == "restore"
    assert [block.block_id for block in blocks] == list(restore.module.block_ids)[: len(blocks)]
    assert residency.encodes.num_started == 1


def test_a_restore_waits_for_room():
    engine = Engine(num_blocks=9, num_host_blocks=4)
    engine.add(request("1", [span(A)], [A]))
    engine.prepare()
    engine.run_encodes()
    engine.residency.finish(engine.queue.pop(), [])
    running = engine.pool.get_new_blocks(8)
    engine.num_running = 1
    engine.add(request("2", [span(A)], [A]))
    assert engine.prepare() == []
    assert engine.residency.map(engine.residency.requests["2"]) is None
    engine.pool.free_blocks(running)
    assert engine.prepare() == []
    assert engine.residency.map(engine.residency.requests["2"]) is not None


def test_host_memory_is_forgotten_with_the_rest():
    engine = Engine(num_blocks=9, num_host_blocks=4)
    engine.add(request("1", [span(A)], [A]))
    engine.prepare()
    engine.run_encodes()
    engine.residency.finish(engine.queue.pop(), [])
    engine.pool.free_blocks(engine.pool.get_new_blocks(8))
    engine.residency.tiers.forget()
    actions = [move.action for move in engine.residency.end_step({}, lambda _: []).moves]
    assert actions == ["save", "clear"]
    engine.add(request("2", [span(A)], [A]))
    assert engine.prepare() == [A]


def test_a_module_is_in_host_memory_or_staged_but_not_both():
    """Encoded and evicted while it is read: the answer finds it in host memory."""
    engine = Engine(num_blocks=9, num_host_blocks=4, has_disk=True)
    engine.add(request("1", [span(A)], [A]))
    assert engine.prepare() == []
    residency = engine.residency
    residency.tiers.fetched(WorkerReport([], [A.key]))
    assert engine.prepare() == [A]
    residency.tiers.forget()
    engine.add(request("2", [span(A)], [A]))
    engine.prepare()
    assert [move.action for move in residency.end_step({}, lambda _: []).moves][-1] == "fetch"
    engine.run_encodes()
    for waiting in list(engine.queue):
        engine.queue.remove(waiting)
        residency.finish(waiting, [])
    engine.pool.free_blocks(engine.pool.get_new_blocks(8))
    assert A.key in residency.tiers.host
    residency.tiers.fetched(WorkerReport([read_module(A)], [], num_clears=1))
    assert residency.tiers._disk.staged(A.key) is None
    assert "drop" not in [move.action for move in residency.end_step({}, lambda _: []).moves]


def test_a_restore_does_not_drive_out_what_it_restores():
    engine = Engine(num_blocks=5, num_host_blocks=3)
    residency = engine.residency
    for number, spec in enumerate((A, module("c", 9))):
        engine.add(request(str(number), [span(spec)], [spec]))
        engine.prepare()
        engine.run_encodes()
        residency.finish(engine.queue.pop(), [])
    # Host memory holds one of them, the KV cache the other.
    engine.add(request("2", [span(A)], [A]))
    assert engine.prepare() == []
    moves = residency.end_step({}, lambda _: []).moves
    # No drop before it; what left for it finds no room.
    assert [move.action for move in moves] == ["restore"]
    assert residency.encodes.num_started == 2


def test_an_encode_runs_though_the_queue_has_it_behind_who_waits_for_it():
    """As a queue by priority may, on a pool that has room for the encode or its waiter."""
    before, nested = module("before", 9), module("nested", 5, context=(span(module("before", 9)),))
    engine = Engine(num_blocks=6)
    engine.add(request("1", [span(nested)], [before, nested]))
    engine.prepare()
    engine.queue.sort(key=lambda waiting: waiting.request_id != "1")
    while len(engine.queue) > 1:
        engine.prepare()
        waiting = [w for w in engine.queue if not engine.residency.holds_back(w)]
        ready = next(w for w in waiting if w.request_id != "1" and is_ready(engine, w))
        engine.run_encode(ready)
    engine.prepare()
    assert engine.residency.map(engine.residency.requests["1"]) is not None


def test_the_walk_along_the_queue_ends_behind_the_last_that_may_be_admitted():
    """A preempted request goes ahead of the encode that an even earlier one waits for."""
    engine = Engine(num_blocks=17)
    residency = engine.residency
    engine.add(request("1", [span(A)], [A]))
    assert engine.prepare() == [A]
    encode = engine.queue[0]
    better, large = request("2", [span(A)], [A]), raw_request("3", 12 * BLOCK_SIZE, None)
    residency.add(better)
    engine.queue[:0] = [better, large]
    engine.num_running = 1
    assert engine.prepare() == []
    assert [residency.holds_back(r) for r in engine.queue] == [False, True, False, True]
    # It comes to `better`, `large` and the encode, and need not look at the last one.
    assert [residency.is_over(r) for r in engine.queue[:3]] == [False, False, True]
    engine.queue.remove(large)
    engine.prepare()
    assert not any(map(residency.is_over, engine.queue))
    engine.run_encode(encode)


def is_ready(engine, waiting):
    return engine.residency.map(engine.residency.get(waiting)) is not None
