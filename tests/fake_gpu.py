"""A made-up GPU: tensors that say they are elsewhere, and who has waited for them.

They say they are on torch's device `meta`, as torch for CPUs indexes nothing on `cuda`; their data
is real. What is launched runs at once, but a copy to the host is there only when somebody has
waited for an event behind it: until then it is `JUNK`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vllm_promptcache.kernels import transfers

GPU = torch.device("meta")
JUNK = 0x5A

_aten = torch.ops.aten
# What has a result on the host, or of a size that only the device knows.
_WAITS = {
    _aten._local_scalar_dense.default,
    _aten.equal.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.repeat_interleave.Tensor,
    _aten._unique2.default,
}
_COPIES = {_aten._to_copy.default, _aten.copy_.default}


class OnGpu(torch.Tensor):
    """A tensor on the GPU.

    Attributes:
        data_there: What it holds.
    """

    data_there: torch.Tensor

    @staticmethod
    def __new__(cls, data: torch.Tensor) -> OnGpu:
        found = torch.Tensor._make_wrapper_subclass(
            cls,
            data.shape,
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            device=GPU,
        )
        found.data_there = data
        return found

    def data_ptr(self) -> int:
        """Where it is."""
        return self.data_there.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} is not run while the GPU is there")


class FakeGpu(TorchDispatchMode):
    """Runs what is on the GPU, on a stream of its own.

    Attributes:
        waits: What would have made the host wait for it, without an event.
        num_events: Events that were waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.num_events = 0
        self._pending: list[Callable[[], object]] = []
        self._pinned: dict[int, torch.Tensor] = {}

    def put(self, data: torch.Tensor) -> OnGpu:
        """A tensor that is there from the beginning."""
        return OnGpu(data.clone())

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """As `torch.Tensor.pin_memory`."""
        return tensor if self._is_pinned(tensor) else self._new_pinned(tensor.clone())

    def run_until(self, num_pending: int) -> None:
        """Waits for an event."""
        self.num_events += 1
        for copy in self._pending[:num_pending]:
            copy()
        self._pending[:num_pending] = [lambda: None] * num_pending

    @property
    def num_launched(self) -> int:
        """Copies to the host that were begun."""
        return len(self._pending)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = [isinstance(x, OnGpu) for x in tensors]
        if func in _COPIES:
            return self._copy(func, args, kwargs)
        if not any(there):
            is_made_there = kwargs.get("device") == GPU
            if is_made_there:
                kwargs["device"] = torch.device("cpu")
            made = func(*args, **kwargs)
            return OnGpu(made) if is_made_there else made
        self._check(func, tensors, there)
        if kwargs.get("device") == GPU:
            kwargs["device"] = torch.device("cpu")
        inside, more = tree_map_only(OnGpu, lambda x: x.data_there, (args, kwargs))
        result = func(*inside, **more)
        # What an operation changes in place is returned as it was given.
        given = {id(x.data_there): x for x in tensors if isinstance(x, OnGpu)}
        return tree_map_only(
            torch.Tensor, lambda x: given[id(x)] if id(x) in given else OnGpu(x), result
        )

    def _check(self, func: Any, tensors: list[torch.Tensor], there: list[bool]) -> None:
        if func in _WAITS:
            self.waits.append(str(func))
        # A number may be on the host: it is an argument of the launch then.
        if any(not is_there and x.dim() for x, is_there in zip(tensors, there, strict=True)):
            self.waits.append(f"{func} of a tensor on the host")
        if "index" in str(func) and any(x.dtype == torch.bool for x in tensors[1:2]):
            self.waits.append(f"{func} by truth")

    def _copy(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func == _aten.copy_.default:
            target, source, *is_free = args
            is_async = bool(is_free and is_free[0]) or bool(kwargs.get("non_blocking"))
            self._transfer(source, target, is_async, func)
            return target
        (source,) = args
        is_there = isinstance(source, OnGpu)
        goes_there = kwargs.get("device", source.device) == GPU
        is_async, dtype = bool(kwargs.get("non_blocking")), kwargs.get("dtype") or source.dtype
        made = torch.empty(source.shape, dtype=dtype)
        if not goes_there and is_there and is_async:
            made = self._new_pinned(made)
        target = OnGpu(made) if goes_there else made
        self._transfer(source, target, is_async, func)
        return target

    def _transfer(
        self, source: torch.Tensor, target: torch.Tensor, is_async: bool, func: Any
    ) -> None:
        is_there, goes_there = isinstance(source, OnGpu), isinstance(target, OnGpu)
        read = source.data_there if isinstance(source, OnGpu) else source
        write = target.data_there if isinstance(target, OnGpu) else target
        if is_there == goes_there:
            write.copy_(read)
            return
        host = target if is_there else source
        if not (is_async and self._is_pinned(host)):
            self.waits.append(f"{func} {'from' if is_there else 'to'} the GPU, {is_async=}")
        if goes_there:
            self._follow()
            write.copy_(read)
        else:
            now = read.clone()
            write.view(torch.uint8).fill_(JUNK)
            self._pending.append(lambda: write.copy_(now))

    def _follow(self) -> None:
        """What is launched on a stream runs behind what was launched before."""
        for copy in self._pending:
            copy()
        self._pending = [lambda: None] * len(self._pending)

    def _new_pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def _is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """The GPU in place of `cuda`, for what `kernels.transfers` does and all that torch runs."""
    gpu = FakeGpu()

    class Event:
        def __init__(self, *, blocking: bool) -> None:
            self._num_launched = 0

        def record(self) -> None:
            self._num_launched = gpu.num_launched

        def synchronize(self) -> None:
            gpu.run_until(self._num_launched)

    with monkeypatch.context() as patch:
        patch.setattr(transfers, "_is_gpu", lambda device: device == GPU)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: gpu.pin(tensor))
        with gpu:
            yield gpu
