"""Environment variables of the tests; to be set before vLLM or transformers is imported."""

from __future__ import annotations

import os


def prepare_environment() -> None:
    """Sets what tests need; the levels of noise and parallelism may be chosen from outside."""
    os.environ.update(
        HF_HUB_OFFLINE="1",
        # The engine in this process, so that tests can look at its scheduler.
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        # Several engines may share the machine; binding would put them on the same cores.
        VLLM_CPU_OMP_THREADS_BIND="nobind",
    )
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # One thread: on two shared cores, threads that wait for each other are slower than one alone.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if runs_on_v2():
        from tests.runner_v2 import use_runner_v2

        use_runner_v2()


def runs_on_v2() -> bool:
    """Whether engines are to run Model Runner V2."""
    return os.environ.get("TEST_MODEL_RUNNER") == "v2"
