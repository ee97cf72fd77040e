"""Copies between host and device, on a CPU and on a made-up GPU."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread

import numpy as np
import pytest
import torch

from tests.fake_gpu import GPU, FakeGpu, fake_gpu
from vllm_promptcache.kernels import copy_slots, transfers
from vllm_promptcache.kernels.copy_slots import SlotTable, copy_slots_triton
from vllm_promptcache.kernels.transfers import HostCopy, to_device

CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    monkeypatch.setattr(transfers, "PIECE_BYTES", 64)
    with fake_gpu(monkeypatch) as gpu:
        yield gpu


def numbers(num: int = 45) -> torch.Tensor:
    """More than fit two pieces, in an odd shape."""
    return torch.arange(num, dtype=torch.float32).view(3, -1)


def test_on_a_cpu_nothing_is_copied() -> None:
    array, tensor = np.arange(5), numbers()
    assert to_device(array, CPU).data_ptr() == array.ctypes.data
    copy = HostCopy.of(tensor)
    assert copy.wait().data_ptr() == copy.to(CPU).data_ptr() == tensor.data_ptr()
    assert (copy.shape, copy.dtype, copy.nbytes) == (tensor.shape, torch.float32, tensor.nbytes)


@pytest.mark.parametrize(
    "wait",
    [
        lambda gpu, tensor: tensor.cpu(),
        lambda gpu, tensor: tensor[0, 0].item(),
        lambda gpu, tensor: bool(tensor.any()),
        lambda gpu, tensor: tensor[tensor > 3],
        lambda gpu, tensor: tensor.nonzero(),
        lambda gpu, tensor: tensor[torch.tensor([0, 2])],
        lambda gpu, tensor: tensor[[0, 2]],
        lambda gpu, tensor: torch.tensor([1, 2]).to(GPU),
        lambda gpu, tensor: torch.tensor([1, 2]).to(GPU, non_blocking=True),
        lambda gpu, tensor: torch.tensor([1, 2]).pin_memory().to(GPU),
    ],
)
def test_the_made_up_gpu_sees_who_waits(gpu: FakeGpu, wait) -> None:
    wait(gpu, gpu.put(numbers()))
    assert gpu.waits


@pytest.mark.parametrize(
    "wait",
    [
        lambda tensor: tensor.tolist(),
        lambda tensor: tensor.numpy(),
        lambda tensor: torch.tensor([1, 2], device=GPU) + tensor[0, :2],
    ],
)
def test_it_has_nothing_that_torch_makes_or_reads_behind_its_back(gpu: FakeGpu, wait) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        wait(gpu.put(numbers()))


def test_a_copy_to_the_host_is_there_when_it_was_waited_for(gpu: FakeGpu) -> None:
    tensor = gpu.put(numbers())
    copy = HostCopy.of(tensor)
    assert len(copy.pieces) == 3
    tensor.zero_()  # behind it on the stream
    assert not torch.equal(torch.cat(copy.pieces), numbers().view(-1))
    assert gpu.num_events == 0
    assert torch.equal(copy.wait(), numbers())
    assert (gpu.waits, gpu.num_events) == ([], 1)
    assert copy.nbytes == numbers().nbytes


def test_another_thread_may_wait(gpu: FakeGpu) -> None:
    copy, found = HostCopy.of(gpu.put(numbers())), []
    thread = Thread(target=lambda: found.append(copy.wait()))
    thread.start()
    thread.join()
    assert torch.equal(found[0], numbers())


@pytest.mark.parametrize("is_on_host", [True, False])
def test_a_copy_goes_back_without_waiting(gpu: FakeGpu, is_on_host: bool) -> None:
    """Also one that is still on its way, and one that is not page-locked, such as from a file."""
    copy = HostCopy.of(numbers() if is_on_host else gpu.put(numbers()))
    back = copy.to(GPU)
    assert torch.equal(back.data_there, numbers())
    assert (gpu.waits, gpu.num_events) == ([], 0)


def test_no_more_is_page_locked_at_once_than_a_piece(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    pin = gpu.pin
    monkeypatch.setattr(gpu, "pin", lambda tensor: sizes.append(tensor.nbytes) or pin(tensor))
    HostCopy.of(numbers()).to(GPU)
    assert sizes == [64, 64, 52]


def test_an_empty_tensor_is_copied(gpu: FakeGpu) -> None:
    copy = HostCopy.of(gpu.put(torch.zeros(2, 0)))
    assert copy.wait().shape == copy.to(GPU).shape == (2, 0)


def test_slots_are_told_to_the_kernel_without_waiting(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: launches.append(args[3].data_there.tolist())

    monkeypatch.setattr(copy_slots, "_transfer", Kernel())
    elements = gpu.put(torch.arange(8).view(4, 2))
    table = SlotTable(gpu.put(torch.zeros(2, dtype=torch.int64)), torch.int16, 8, elements)
    copy_slots_triton(table, np.array([3, 4]), np.array([1, 2]))
    assert launches == [[[3, 4], [1, 2]]] * 2
    assert gpu.waits == []
