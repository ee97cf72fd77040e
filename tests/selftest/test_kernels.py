"""The check of kernels: it passes here, and it can fail."""

import numpy as np
import pytest
import torch

from vllm_promptcache.kernels.cpu import CPUSlotCopier
from vllm_promptcache.selftest.kernels import LAYOUTS, check_kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_of_this_machine_are_right(dtype):
    results = list(check_kernels(torch.device("cpu"), dtype))
    assert {layout for layout, *_ in results} == set(LAYOUTS)
    assert all(is_right for *_, is_right in results)


def test_a_kernel_that_mixes_slots_up_is_found(monkeypatch):
    copy = CPUSlotCopier.copy

    def wrong(self, source, target):
        copy(self, source, np.roll(target, 1))

    monkeypatch.setattr(CPUSlotCopier, "copy", wrong)
    results = list(check_kernels(torch.device("cpu"), torch.float32))
    wrong = {what for _, what, is_right in results if not is_right}
    assert "copy" in wrong
    assert "read and write" not in wrong
