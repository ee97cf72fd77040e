"""vLLM's Model Runner V2 on a CPU: its Triton kernels run in Triton's interpreter.

That takes a fraction of a second a step, and it is the code that GPUs get but for what a compiler
makes of it. vLLM takes V2 where Triton has a driver, so one is made up.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).parent
# Workers are spawned: they import none of the tests, but what stands in a `sitecustomize`.
_PYTHONPATH = os.pathsep.join(map(str, [_TESTS / "spawned", _TESTS.parent]))


def use_runner_v2() -> None:
    """Makes engines of this process, and of its children, run Model Runner V2.

    To be called before vLLM or Triton is imported.
    """
    os.environ.update(
        TRITON_INTERPRET="1",
        VLLM_USE_V2_MODEL_RUNNER="1",
        CUDA_VISIBLE_DEVICES="",
        PYTHONPATH=_PYTHONPATH,
    )
    from triton import backends

    backends.backends["cpu"] = backends.Backend(compiler=None, driver=_Driver)


class _Driver:
    """As much of a driver as Triton and vLLM ask for."""

    @staticmethod
    def is_active() -> bool:
        return False

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cpu", 0, 1)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        import torch

        return torch.cpu

    def get_benchmarker(self) -> None:
        return None
