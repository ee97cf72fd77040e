"""Prompts of all policies in each configuration of vLLM that is served, against the reference.

Without pytest, with other numbers, on either model runner:

    python -m tests.engine.test_configurations --prompts 50
    TEST_MODEL_RUNNER=v2 python -m tests.engine.test_configurations --prompts 50 --only TP PP
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.environment import prepare_environment, runs_on_v2

prepare_environment()

from tests.async_scheduling import asynchronous_scheduling  # noqa: E402
from tests.engine.agreement import (  # noqa: E402  (vLLM reads its environment when imported)
    Agreement,
)
from tests.engine.harness import (  # noqa: E402
    running_engine,
    scheduler_of,
)
from tests.families import LLAMA  # noqa: E402
from tests.reference import Reference  # noqa: E402
from tests.reference.compare import Tally  # noqa: E402

NUM_PROMPTS = 16
NUM_PROMPTS_SLOW = 50
# Chunks of prompts and of modules' encodes.
CHUNKS = {"max_num_batched_tokens": 64}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "chunks": CHUNKS,
    "one at a time": {"max_num_seqs": 1},
    "64 at a time": {"max_num_seqs": 64},
    "priorities": CHUNKS | {"scheduling_policy": "priority", "max_num_seqs": 4},
    "asynchronous": CHUNKS | {"async_scheduling": True},
    "TP": CHUNKS | {"tensor_parallel_size": 2},
    "PP": CHUNKS | {"pipeline_parallel_size": 2},
    "TP x PP": CHUNKS | {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
}
# What no other test runs in one way or another; `test_shards.py` has two workers on V1.
FAST = {"priorities", "TP", "PP"} if runs_on_v2() else {"priorities"}


def agree(folder: Path, name: str, num_prompts: int) -> tuple[Tally, Tally]:
    """Runs random prompts in a configuration.

    Args:
        folder: For the model.
        name: One of `CONFIGURATIONS`.
        num_prompts: With modules; plain ones run beside them.

    Returns:
        The differences of PML prompts and of plain prompts.

    Raises:
        AssertionError: The scheduler's books are wrong.
    """
    model = LLAMA.save(folder)
    options = CONFIGURATIONS[name] | {"block_size": 32, "kv_cache_memory_bytes": 64 << 20}
    is_async = options.pop("async_scheduling", False)
    scheduling = asynchronous_scheduling() if is_async else nullcontext()
    modules = {"verify": True}
    with scheduling, running_engine(model, prompt_modules=modules, **options) as llm:
        agreement = Agreement(llm, Reference(model), 50)
        tallies = agreement.run(num_prompts, seed=5, num_random_schemas=3)
        scheduler_of(llm).check_integrity()
    return tallies


def parameters() -> list[Any]:
    """The configurations, those that take long or say little marked as slow."""
    return [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in CONFIGURATIONS
        if is_there(name)
    ]


def is_there(name: str) -> bool:
    """Whether vLLM has the configuration on a CPU: its V1 runner there has no stages."""
    return runs_on_v2() or "PP" not in name


@pytest.mark.parametrize("name", parameters())
def test_prompts_agree(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    num_prompts = NUM_PROMPTS if name in FAST else NUM_PROMPTS_SLOW
    modular, plain = agree(tmp_path, name, num_prompts)
    with capsys.disabled():
        print(f"\n{name}: {modular}; plain prompts beside them: {plain}")
    assert modular.num_outputs == num_prompts
    assert not modular.wrong, modular
    assert not plain.wrong, plain


def main() -> None:
    """Prints a line for each configuration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS_SLOW)
    parser.add_argument("--only", nargs="*", choices=CONFIGURATIONS, default=[*CONFIGURATIONS])
    args = parser.parse_args()
    for name in filter(is_there, args.only):
        with tempfile.TemporaryDirectory() as folder:
            modular, plain = agree(Path(folder), name, args.prompts)
        print(f"{name}: {modular}; plain prompts beside them: {plain}", flush=True)


if __name__ == "__main__":
    main()
