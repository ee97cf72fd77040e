"""Workers that each have a shard of a module on disk: all of one encode come back, or none do."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from random import Random

import pytest
import torch

from tests.core.plans import BLOCK_SIZE, module, read_module, request, span
from tests.core.test_residency import Engine
from vllm_promptcache.kernels.reference import SlotCopier
from vllm_promptcache.kernels.transfers import HostCopy
from vllm_promptcache.steps.step import HostMove, StepMetadata, WorkerReport
from vllm_promptcache.store.disk_tier import PATIENCE_S
from vllm_promptcache.worker.disk_store import DiskStore
from vllm_promptcache.worker.host_store import HostStore
from vllm_promptcache.worker.module_file import ModuleFile

A = module("a", 9)
NUM_BLOCKS, NUM_WORKERS = 9, 3
LENGTHS = {"a": 9, "b": 5, "c": 12, "d": 3, "e": 8, "f": 6}
MODULES = [module(name, num_tokens) for name, num_tokens in LENGTHS.items()]
NUM_STEPS = 400
MAX_LAG = 2
FOREIGN = -1.0


def joined(*reports: WorkerReport) -> WorkerReport:
    """What vLLM makes of the reports of several workers."""
    return reduce(WorkerReport.aggregate, reports)


@pytest.mark.parametrize("is_at_once", [False, True])
def test_a_module_is_restored_once_both_workers_have_read_it(is_at_once: bool) -> None:
    engine = Engine(has_disk=True, num_workers=2)
    tiers, store = engine.residency.tiers, engine.residency.store
    engine.add(request("1", [span(A)], [A]))
    engine.prepare()
    one = WorkerReport([read_module(A)], [])
    if is_at_once:
        tiers.fetched(joined(one, WorkerReport([read_module(A)], [])))
    else:
        tiers.fetched(one)
        assert engine.prepare() == []
        assert store.lookup(A.key) is None
        tiers.fetched(one)
    assert engine.prepare() == []
    assert store.lookup(A.key) is not None
    assert store.stats.num_fetches == 1


@pytest.mark.parametrize(
    "other",
    [WorkerReport([], [A.key]), WorkerReport([read_module(A, b"of another encode")], [])],
    ids=["missing", "of another encode"],
)
def test_a_module_that_does_not_fit_together_is_encoded_and_dropped(other: WorkerReport) -> None:
    engine = Engine(has_disk=True, num_workers=2)
    engine.add(request("1", [span(A)], [A]))
    engine.prepare()
    engine.residency.tiers.fetched(joined(WorkerReport([read_module(A)], []), other))
    assert engine.prepare() == [A]
    moves = engine.residency.end_step({}, lambda _: []).moves
    assert [move.action for move in moves if isinstance(move, HostMove)] == ["fetch", "drop"]
    assert engine.residency.store.stats.num_fetches == 0


def test_modules_are_moved_if_all_workers_can_whoever_reports_later() -> None:
    tiers = Engine().residency.tiers
    tiers.fetched(joined(*(WorkerReport([], [], can) for can in (True, False))))
    tiers.fetched(WorkerReport([], [], can_relocate=True))
    assert tiers.can_relocate is False


def test_encodes_have_ids_of_their_own() -> None:
    engine, ids = Engine(), set()
    for spec in MODULES:
        engine.add(request(spec.key.hex(), [span(spec)], [spec]))
        engine.prepare()
        (encode, *_) = engine.queue
        ids.add(engine.run_encode(encode).encode_id)
    assert len(ids) == len(MODULES)
    assert {len(one) for one in ids} == {16}
    assert engine.residency.end_step({}, lambda _: []).encode_id == b""


@dataclass(slots=True)
class Files:
    """A worker's files, some of which are read slowly, and some lost; in place of `DiskStore`."""

    rng: Random
    by_key: dict[bytes, ModuleFile] = field(default_factory=dict)
    _reads: dict[bytes, ModuleFile | None] = field(default_factory=dict)

    def read(self, key: bytes) -> None:
        assert key not in self._reads, "it is being read"
        self._reads[key] = self.by_key.get(key)

    def take_read(self) -> tuple[list[ModuleFile], list[bytes]]:
        keys = [key for key in self._reads if self.rng.random() < 0.4]
        done = {key: self._reads.pop(key) for key in keys}
        return [file for file in done.values() if file], [key for key in done if not done[key]]

    def write(self, file: ModuleFile) -> None:
        # As where too much waits to be written.
        if self.rng.random() < 0.9:
            self.by_key[file.key] = file

    def clear(self) -> None:
        self._reads.clear()

    def harm(self) -> None:
        """A file is deleted, or is now of an engine with other weights in other workers."""
        if self.by_key:
            key = self.rng.choice(list(self.by_key))
            file = self.by_key.pop(key)
            if self.rng.random() < 0.5:
                blocks = torch.full_like(file.blocks.wait().view(torch.float32), FOREIGN)
                foreign = HostCopy.of(blocks.view(torch.int32))
                encode_id = self.rng.randbytes(16)
                self.by_key[key] = ModuleFile(key, file.num_tokens, encode_id, foreign)


class Worker:
    """A worker's host memory and KV cache, of one layer and one number a slot."""

    def __init__(self, rng: Random) -> None:
        self.cache, self.files = torch.zeros(NUM_BLOCKS, BLOCK_SIZE), Files(rng)
        copier = SlotCopier([self.cache], torch.arange(BLOCK_SIZE)[None])
        disk: DiskStore = self.files  # type: ignore[assignment]
        self.host = HostStore(copier, disk)

    def run(self, step: StepMetadata, number: float) -> WorkerReport:
        """Does a step; what is encoded in it is `number`."""
        for move in step.moves:
            assert isinstance(move, HostMove)
            self.host.apply(move)
        for encoded in step.encoded:
            self.cache[list(encoded.block_ids)] = number
            self.host.keep(encoded, step.encode_id)
        return WorkerReport(*self.host.take_read(), num_clears=self.host.num_clears)


class Simulation:
    """Requests, evictions, lost files and resets; reports come some steps after their own."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.workers = [Worker(self.rng) for _ in range(NUM_WORKERS)]
        options = {"num_host_blocks": 5, "has_disk": True, "num_workers": NUM_WORKERS}
        self.engine = Engine(NUM_BLOCKS, **options)
        self.residency = self.engine.residency
        self.now = 0.0
        self.residency.tiers._disk.clock = lambda: self.now
        self.reports: deque[WorkerReport] = deque()
        self.encoded_of: dict[float, bytes] = {}
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        events: list[Callable[[], object]]
        events = [self.ask, self.evict, self.harm, self.lose_patience, self.reset]
        weights = [16, 6, 2, 2, 0.5]
        for _ in range(NUM_STEPS):
            self.rng.choices(events, weights)[0]()
            self.step()
        for _ in range(NUM_STEPS):
            self.step()
        self.take_reports(0)

    def ask(self) -> None:
        spec = self.rng.choice(MODULES)
        self.counts["asked"] += 1
        self.engine.add(request(str(self.counts["asked"]), [span(spec)], [spec]))

    def evict(self) -> None:
        pool = self.engine.pool
        num_blocks = self.rng.randint(0, pool.get_num_free_blocks())
        pool.free_blocks(pool.get_new_blocks(num_blocks))

    def harm(self) -> None:
        self.rng.choice(self.workers).files.harm()

    def lose_patience(self) -> None:
        """Modules that are being read are encoded until a read has ended."""
        self.now += PATIENCE_S + 1

    def reset(self) -> None:
        self.evict()
        self.residency.tiers.forget()

    def step(self) -> None:
        """Schedules and computes a step, and looks at all that is resident then."""
        self.engine.prepare()
        num_free = self.engine.pool.get_num_free_blocks()
        encodes = [
            waiting
            for waiting in self.engine.queue
            if self.is_encode(waiting) and self.residency.get(waiting).num_own_blocks <= num_free
        ]
        if encodes:
            self.compute(self.engine.run_encode(encodes[0]))
        else:
            self.compute(self.residency.end_step({}, lambda _: []))
        for waiting in list(self.engine.queue):
            if self.is_encode(waiting):
                continue
            if self.residency.map(self.residency.get(waiting)) is not None:
                self.engine.queue.remove(waiting)
                self.residency.finish(waiting, [])
                self.counts["answered"] += 1
        self.take_reports(self.rng.randint(0, MAX_LAG))

    def is_encode(self, waiting: object) -> bool:
        return waiting.request_id.startswith("prompt-module-")  # type: ignore[attr-defined]

    def compute(self, step: StepMetadata) -> None:
        number = len(self.encoded_of) + 1.0
        for encoded in step.encoded:
            self.encoded_of[number] = encoded.key
        self.reports.append(joined(*(worker.run(step, number) for worker in self.workers)))
        for spec in MODULES:
            if (resident := self.residency.store.lookup(spec.key)) is not None:
                blocks = [worker.cache[resident.block_ids] for worker in self.workers]
                (number,) = torch.stack(blocks).unique().tolist()
                assert self.encoded_of[number] == spec.key

    def take_reports(self, lag: int) -> None:
        while len(self.reports) > lag:
            report = self.reports.popleft()
            self.counts["lost in part"] += len(set(report.absent) & {m.key for m in report.found})
            self.residency.tiers.fetched(report)


def test_whatever_files_are_lost_shards_in_the_cache_are_of_one_encode() -> None:
    counts: Counter[str] = Counter()
    for seed in range(6):
        simulation = Simulation(seed)
        simulation.run()
        stats = simulation.residency.store.stats
        assert not simulation.engine.queue
        assert simulation.counts["answered"] == simulation.counts["asked"]
        counts += simulation.counts
        counts.update(fetches=stats.num_fetches, restores=stats.num_restores, saves=stats.num_saves)
        tiers = simulation.residency.tiers
        tiers.drop_unclaimed()
        step = simulation.residency.end_step({}, lambda _: [])
        for worker in simulation.workers:
            worker.run(step, 0)
            assert len(worker.host._blocks) == len(tiers.host)
    print(counts)
    assert min(counts[name] for name in ("fetches", "restores", "saves", "lost in part")) > 30
