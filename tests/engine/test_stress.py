"""Thousands of random operations on an engine with too few blocks.

Without pytest, with other numbers:

    python -m tests.engine.test_stress --operations 10000 --seed 3
    python -m tests.engine.test_stress --operations 2000 --seed 3 --async-scheduling --priorities
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.environment import prepare_environment

prepare_environment()

from tests.async_scheduling import asynchronous_scheduling  # noqa: E402
from tests.engine.harness import (  # noqa: E402
    running_engine,
)
from tests.engine.stress import Stress  # noqa: E402
from tests.families import LLAMA  # noqa: E402
from tests.reference import Reference  # noqa: E402

NUM_OPERATIONS = 2_000
NUM_OPERATIONS_ASYNC = 800
NUM_OPERATIONS_SLOW = 10_000
NUM_BLOCKS = 40
HOST_BYTES = 640 << 10
ENGINE_ARGS = {
    "block_size": 32,
    "num_gpu_blocks_override": NUM_BLOCKS,
    "kv_cache_memory_bytes": 16 << 20,
    "max_model_len": 1024,
    "max_num_seqs": 8,
    # Few enough for an encode to take several steps.
    "max_num_batched_tokens": 24,
    # Host memory for about half as many blocks.
    "prompt_modules": {
        "verify": True,
        "repair": "query:20",
        "host_memory": HOST_BYTES / 2**30,
        "prefetch": True,
        "promote_after": 1,
        "max_promoted_share": 0.5,
    },
}


def stress(
    folder: Path,
    num_operations: int,
    seed: int,
    *,
    is_async: bool = False,
    has_priorities: bool = False,
) -> str:
    """Runs the operations and returns the counts.

    Args:
        folder: For the model, and modules on disk.
        num_operations: How many.
        seed: Of all choices.
        is_async: Whether steps are scheduled asynchronously.
        has_priorities: Whether requests go before others by a random priority.

    Raises:
        AssertionError: Something is wrong; it names the seed and the last operations.
    """
    model = LLAMA.save(folder)
    cold = "plain" if seed % 2 else "encode"
    options = ENGINE_ARGS["prompt_modules"] | {"dir": str(folder / "modules"), "cold": cold}
    policy = "priority" if has_priorities else "fcfs"
    args = ENGINE_ARGS | {"prompt_modules": options, "scheduling_policy": policy}
    scheduling = asynchronous_scheduling() if is_async else nullcontext()
    with scheduling, running_engine(model, **args) as llm:
        assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling == is_async
        run = Stress(llm, Reference(model), seed)
        try:
            run.run(num_operations)
        # Raised again, with what is needed to do it again.
        except Exception as error:
            log = "\n".join(run.log)
            raise AssertionError(f"seed {seed}: {error!r}\n{run.report()}\n{log}") from error
        return run.report()


@pytest.mark.parametrize(
    ("is_async", "num_operations"), [(False, NUM_OPERATIONS), (True, NUM_OPERATIONS_ASYNC)]
)
def test_random_operations(
    is_async: bool, num_operations: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = stress(tmp_path, num_operations, 0, is_async=is_async)
    with capsys.disabled():
        print(f"\n{report}")


@pytest.mark.slow
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_many_random_operations(
    seed: int, is_async: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = stress(tmp_path, NUM_OPERATIONS_SLOW, seed, is_async=is_async)
    with capsys.disabled():
        print(f"\n{report}")


def main() -> None:
    """Runs the operations with the numbers of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=NUM_OPERATIONS_SLOW)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--async-scheduling", action="store_true")
    parser.add_argument("--priorities", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = stress(
            Path(folder),
            args.operations,
            args.seed,
            is_async=args.async_scheduling,
            has_priorities=args.priorities,
        )
        print(report)


if __name__ == "__main__":
    main()
