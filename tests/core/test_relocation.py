"""Modules at other places than their own: rotated where that can be done, else encoded there."""

from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.sequence.spans import ModuleSpan, Relocation, SequencePlan
from vllm_promptcache.steps.step import RelocationCopy, WorkerReport

from .plans import module, request, span
from .test_residency import Engine

BEFORE = module("before", 6)
AT_HOME = module("moves", 9, context=(span(BEFORE),))
MOVED = Relocation(b"m" * 32, AT_HOME.key, 20)


def engine_with_a_moved_module(**options) -> Engine:
    engine = Engine(**options)
    moved = ModuleSpan(MOVED.key, AT_HOME.num_kept_tokens, (Run(0, AT_HOME.num_kept_tokens),))
    engine.add(request("user", [moved], [BEFORE, AT_HOME], relocations=[MOVED]))
    return engine


def report(engine: Engine, *, can_relocate: bool) -> None:
    engine.residency.tiers.fetched(WorkerReport([], [], can_relocate))


def test_a_module_that_moves_is_encoded_at_home_behind_its_context_and_rotated():
    engine = engine_with_a_moved_module()
    # What the workers can do is not known yet.
    assert engine.prepare() == [BEFORE, AT_HOME]
    for waiting in engine.queue[:2]:
        engine.run_encode(waiting)
    report(engine, can_relocate=True)
    assert engine.prepare() == []
    assert engine.residency.store.stats.num_relocations == 1
    assert len(engine.residency.map(engine.residency.requests["user"])) == 2
    (copy,) = engine.residency.end_step({}, lambda _: []).moves
    assert isinstance(copy, RelocationCopy)
    assert (copy.shift, copy.target.key) == (20, MOVED.key)


def test_where_keys_cannot_be_rotated_it_is_encoded_at_its_place_alone():
    engine = engine_with_a_moved_module()
    report(engine, can_relocate=False)
    (spec,) = engine.prepare()
    assert spec.key == MOVED.key
    assert spec.sequence == SequencePlan((), (Run(20, 9),))
    assert (spec.token_ids, spec.kept_runs) == (AT_HOME.token_ids, AT_HOME.kept_runs)


def test_without_room_for_a_copy_the_module_itself_moves():
    engine = engine_with_a_moved_module(num_blocks=6)
    assert engine.prepare() == [BEFORE, AT_HOME]
    for waiting in engine.queue[:2]:
        engine.run_encode(waiting)
    report(engine, can_relocate=True)
    residency, at_home = engine.residency, engine.residency.store.lookup(AT_HOME.key)
    assert engine.prepare() == []
    assert residency.store.lookup(AT_HOME.key) is None
    assert residency.store.lookup(MOVED.key).blocks == at_home.blocks
    assert len(residency.map(residency.requests["user"])) == 2
    (*_, copy) = residency.end_step({}, lambda _: []).moves
    assert copy.source.block_ids == copy.target.block_ids
    assert {block.ref_cnt for block in at_home.blocks} == {1}, "held for the user only"
