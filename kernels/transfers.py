"""Copies between host memory and a GPU that no step waits for.

A GPU reads and writes page-locked host memory by itself, in the order of its stream; with any other
the host waits until all that was launched before has run. All copies are on the main stream, on
which steps run too: so what is read is as it was when the copy was begun, whatever is written
behind it, and blocks may be reused at once.

Tested on CPUs and on a made-up GPU only: nothing here has run on a real one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch

PIECE_BYTES = 1 << 20
"""What is long is copied in pieces of this size.

torch hands page-locked memory out again when its last copy has ended, but only for what is as
large. So what it holds, for good, is bounded by what was in use at once, and is not allocated anew.
"""


def to_device(numbers: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Copies numbers that a step needs to its device; on a CPU they are shared, not copied."""
    tensor = torch.from_numpy(numbers)
    if _is_gpu(device):
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class HostCopy:
    """A tensor in host memory, or on its way there from a GPU.

    Attributes:
        shape: Of the tensor.
        pieces: All of it, flat, one behind the other. Not to be read before `wait`.
        done: What tells that they are there; None if they are already.
    """

    shape: torch.Size
    pieces: tuple[torch.Tensor, ...]
    done: torch.cuda.Event | None = None

    @classmethod
    def of(cls, tensor: torch.Tensor) -> HostCopy:
        """Begins to copy a contiguous tensor; one that is in host memory is shared, not copied."""
        if not _is_gpu(tensor.device):
            return cls(tensor.shape, (tensor.cpu().view(-1),))
        # Page-locked, as nothing waits for them.
        pieces = [piece.to("cpu", non_blocking=True) for piece in _split(tensor.view(-1))]
        # Who waits sleeps: to spin would hold the driver's lock.
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record()
        return cls(tensor.shape, tuple(pieces), done)

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensor."""
        return self.pieces[0].dtype

    @property
    def nbytes(self) -> int:
        """Host memory that it takes."""
        return sum(piece.nbytes for piece in self.pieces)

    def wait(self) -> torch.Tensor:
        """Waits until it is there, in any thread; returns it, to be read only."""
        if self.done is not None:
            self.done.synchronize()
        whole = self.pieces[0] if len(self.pieces) == 1 else torch.cat(self.pieces)
        return whole.view(self.shape)

    def to(self, device: torch.device) -> torch.Tensor:
        """Copies it to a device, without waiting for a GPU even if it is still on its way from it.

        What is not page-locked goes through memory that is. On a CPU nothing is copied.
        """
        if not _is_gpu(device):
            return self.wait().to(device)
        copied = torch.empty(self.shape, dtype=self.dtype, device=device)
        pieces = (piece for part in self.pieces for piece in _split(part))
        for target, piece in zip(_split(copied.view(-1)), pieces, strict=True):
            target.copy_(piece.pin_memory(), non_blocking=True)
        return copied


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def _split(flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(flat, PIECE_BYTES // flat.element_size())
