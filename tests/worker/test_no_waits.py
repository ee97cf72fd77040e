"""Steps of a worker, one in which it does all it can do: nothing waits for a GPU, made up here."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

from tests.fake_gpu import OnGpu, fake_gpu
from vllm_promptcache.kernels.reference import SlotCopier
from vllm_promptcache.sequence.rows import AttentionRow, AttentionRows
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.steps.slots import SlotCopy
from vllm_promptcache.steps.step import (
    HostMove,
    ModuleBlocks,
    ObservedRequest,
    RelocationCopy,
    StepMetadata,
)
from vllm_promptcache.worker.attention_probe import AttentionProbe
from vllm_promptcache.worker.disk_store import DiskStore
from vllm_promptcache.worker.host_store import HostStore
from vllm_promptcache.worker.module_file import ModuleFile
from vllm_promptcache.worker.module_worker import ModuleWorker
from vllm_promptcache.worker.placement import Placement
from vllm_promptcache.worker.rotary import Rotary
from vllm_promptcache.worker.runner_inputs import runner_inputs

NUM_BLOCKS, BLOCK_SIZE, HEAD_SIZE, NUM_LAYERS = 12, 4, 8, 2
NUM_ELEMENTS = BLOCK_SIZE * 2 * HEAD_SIZE
SAVED, MOVED, ENCODED = (bytes([number]) * 32 for number in range(3))
INDEXES = [5, 6, 40, 41, 42]
SPLIT = AttentionRows((AttentionRow(1, 0, Run(0, 1), 3), AttentionRow(2, None, Run(0, 2), 8)), ())

Put = Callable[[torch.Tensor], torch.Tensor]


def slots(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


# A module leaves block 1, and comes back to block 2, while its old one is written.
STEP = StepMetadata(
    moves=[
        HostMove("save", ModuleBlocks(SAVED, (1,), 3)),
        HostMove("restore", ModuleBlocks(SAVED, (2,), 3)),
        RelocationCopy(
            ModuleBlocks(SAVED, (2,), 3), ModuleBlocks(MOVED, (3,), 3), (Run(10, 3),), 20
        ),
        HostMove("fetch", ModuleBlocks(MOVED, (), 0)),
    ],
    loads=SlotCopy(slots(8, 9), slots(4, 6)),
    position_offsets=[("modular", ((2, -40), (1, 1000)))],
    slot_offsets=[("modular", ((1, -30), (2, 3)))],
    rows=[("modular", SPLIT)],
    observed=[ObservedRequest("modular", 2, slots(4, 5, 6, 20, 21))],
    stores=SlotCopy(slots(5, 6), slots(16, 17)),
    encoded=[ModuleBlocks(ENCODED, (4,), 2)],
)


@dataclass
class Runner:
    """As much of a V1 or V2 runner as is read, and its model's layers."""

    put: Put
    is_v2: bool
    slots: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.vllm_config = SimpleNamespace(use_v2_model_runner=self.is_v2)
        self.max_num_tokens = 8
        self.caches = {
            str(i): self.put(torch.randn(NUM_BLOCKS, NUM_ELEMENTS, generator=generator))
            for i in range(NUM_LAYERS)
        }
        self.query = self.put(torch.randn(5, HEAD_SIZE, generator=generator))
        self.positions = self.put(torch.tensor(INDEXES))
        self.device = self.positions.device
        self.layers = {
            name: SimpleNamespace(impl=Impl(), num_kv_heads=1, head_size=HEAD_SIZE)
            for name in self.caches
        }
        self.req_ids = ["plain", "modular"]
        compute = SimpleNamespace(compute_slot_mapping=self._compute)
        self.input_batch = SimpleNamespace(req_ids=self.req_ids, block_table=compute)
        self.block_tables = SimpleNamespace(compute_slot_mappings=self._compute)
        self.model_state = SimpleNamespace(
            prepare_inputs=lambda batch, states: {}, prepare_dummy_inputs=lambda *numbers: {}
        )
        self.idx_mapping = None
        self.num_tokens_after_padding = 5

    def prepare(self, *lengths: int) -> None:
        """Begins a step in which the requests compute so many tokens."""
        self.query_start_loc_np = starts = np.array([0, *np.cumsum(lengths)], dtype=np.int32)
        self.query_start_loc = SimpleNamespace(np=starts, gpu=self.put(torch.from_numpy(starts)))

    def _compute(self, first: Any, starts: Any, indexes: torch.Tensor, **more: int) -> None:
        self.slots.append(indexes)

    @property
    def batch(self) -> CommonAttentionMetadata:
        starts = torch.from_numpy(self.query_start_loc_np)
        table = torch.arange(8, dtype=torch.int32).view(2, 4)
        seq_lens = torch.tensor([7, 8], dtype=torch.int32)
        return CommonAttentionMetadata(
            query_start_loc=self.put(starts),
            query_start_loc_cpu=starts,
            seq_lens=self.put(seq_lens),
            seq_lens_cpu_upper_bound=seq_lens,
            num_reqs=2,
            num_actual_tokens=5,
            max_query_len=3,
            max_seq_len=8,
            block_table_tensor=self.put(table),
            slot_mapping=self.put(torch.arange(5)),
            positions=self.positions,
        )


class Impl:
    """Attention that has stored its keys and is not computed."""

    scale = 0.3

    def forward(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass
class Setup:
    """A worker and its runner."""

    runner: Runner
    worker: ModuleWorker

    @classmethod
    def create(cls, path: Path, put: Put, *, is_v2: bool) -> Setup:
        runner = Runner(put, is_v2)
        caches = list(runner.caches.values())
        elements = torch.arange(NUM_ELEMENTS).view(BLOCK_SIZE, -1).T.contiguous()
        copier = SlotCopier(caches, elements)
        angles = torch.arange(2000)[:, None] / torch.arange(1, HEAD_SIZE // 2 + 1)
        rotary = Rotary(put(torch.cat([angles.cos(), angles.sin()], dim=1)), True, HEAD_SIZE)
        probe = AttentionProbe.create(runner.layers, runner.caches, elements)
        disk = DiskStore(path, 1 << 30, lambda: "one" * 20)
        worker = ModuleWorker(
            copier,
            BLOCK_SIZE,
            HostStore(copier, disk),
            Placement(runner_inputs(runner)),
            rotary,
            probe,
        )
        return cls(runner, worker)

    def run(self, step: StepMetadata, *lengths: int) -> dict[str, Any]:
        """A step, in the order in which vLLM calls; with what comes behind it on the stream.

        Returns:
            What vLLM is told, by name.
        """
        worker, runner = self.worker, self.runner
        runner.prepare(*lengths)
        worker.placement.begin(step)
        worker.place(runner)
        rows = worker.split_rows(runner.batch, BLOCK_SIZE)
        inputs = runner.model_state.prepare_inputs(runner, None)
        worker.begin(step)
        worker.before_forward(step)
        for name, layer in runner.layers.items():
            layer.impl.forward(layer, runner.query, None, None, runner.caches[name], object())
        worker.after_forward(step)
        report = worker.report()
        for cache in runner.caches.values():
            cache.add_(1)  # the next step
        return {"rows": rows, "inputs": inputs, "report": report}


def read(value: Any) -> Any:
    """A value without a GPU."""
    if isinstance(value, CommonAttentionMetadata):
        return [read(getattr(value, one.name)) for one in fields(value)]
    if isinstance(value, Mapping):
        return {name: read(one) for name, one in value.items()}
    if isinstance(value, list):
        return [*map(read, value)]
    tensor = value.data_there if isinstance(value, OnGpu) else value
    return tensor.tolist() if isinstance(tensor, torch.Tensor | np.ndarray) else tensor


def module_in(folder: Path) -> torch.Tensor:
    """The blocks of the only file in a folder of a disk store."""
    (path,) = folder.glob("*/*.safetensors")
    return ModuleFile.read(path, ENCODED, "one" * 20).blocks.wait()


@pytest.fixture(params=[False, True], ids=["V1", "V2"])
def is_v2(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_steps_wait_for_nothing_and_do_what_they_do_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_v2: bool
) -> None:
    on_cpu = Setup.create(tmp_path / "cpu", torch.Tensor.clone, is_v2=is_v2)
    expected, expected_next = on_cpu.run(STEP, 2, 3), on_cpu.run(StepMetadata(), 1, 1)
    on_cpu.worker.close()
    with fake_gpu(monkeypatch) as gpu:
        on_gpu = Setup.create(tmp_path / "gpu", gpu.put, is_v2=is_v2)
        gpu.waits.clear()  # a start may wait
        found, found_next = on_gpu.run(STEP, 2, 3), on_gpu.run(StepMetadata(), 1, 1)
        assert gpu.waits == []
        on_gpu.worker.close()
        attention = pickle.loads(pickle.dumps(found["report"])).attention
    assert type(attention) is dict
    assert read(attention) == read(expected["report"].attention) != {}
    assert read(found["rows"]) == read(expected["rows"])
    assert read(found["inputs"]) == read(expected["inputs"])
    assert read(found_next["inputs"]) == read(expected_next["inputs"])
    assert read(on_gpu.runner.positions) == read(on_cpu.runner.positions)
    assert read(on_gpu.runner.slots) == read(on_cpu.runner.slots)
    assert read(on_gpu.runner.caches) == read(on_cpu.runner.caches)
    written = [module_in(tmp_path / name) for name in ("cpu", "gpu")]
    assert torch.equal(*written)


def test_only_who_writes_the_file_and_who_reads_the_answer_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_gpu(monkeypatch) as gpu:
        on_gpu = Setup.create(tmp_path, gpu.put, is_v2=False)
        files: list[ModuleFile] = []
        monkeypatch.setattr(DiskStore, "write", lambda store, file: files.append(file))
        report = on_gpu.run(STEP, 2, 3)["report"]
        on_gpu.worker.close()
        assert len(report.attention) == 1
        assert gpu.num_events == 0
        assert report.attention["modular"].any()
        assert gpu.num_events == 1
        files[0].write(tmp_path / "file", "one")
        assert gpu.num_events == 2
