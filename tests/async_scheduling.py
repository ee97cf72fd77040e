"""Asynchronous scheduling on the CPU, for which vLLM turns it off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from vllm.config import VllmConfig
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.worker.cpu_model_runner import CPUModelRunner


@contextmanager
def asynchronous_scheduling() -> Iterator[None]:
    """Engines that are started inside schedule a step before they have the tokens of the last.

    The scheduler and the queue of batches are vLLM's, so each step is scheduled, updated and
    aborted in the order of a GPU. The runner stays the synchronous one: a step is computed as soon
    as it is scheduled, and nothing is computed while the scheduler runs.
    """
    check, make_runner = CpuPlatform.check_and_update_config, CPUModelRunner.__init__

    def check_and_update_config(vllm_config: VllmConfig) -> None:
        check(vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    def init(self: CPUModelRunner, *args: Any, **kwargs: Any) -> None:
        make_runner(self, *args, **kwargs)
        self.use_async_scheduling = False

    with (
        patch.object(CpuPlatform, "check_and_update_config", staticmethod(check_and_update_config)),
        patch.object(CPUModelRunner, "__init__", init),
    ):
        yield
