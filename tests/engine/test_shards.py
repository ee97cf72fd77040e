"""Several workers keep modules on disk, each its shard: after a restart, and where one of them has
lost its file. Every answer is compared with the reference.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.environment import prepare_environment, runs_on_v2

prepare_environment()

from tests.engine.agreement import (  # noqa: E402  (vLLM reads its environment when imported)
    difference,
)
from tests.engine.harness import (  # noqa: E402
    greedy,
    running_engine,
    scheduler_of,
)
from tests.families import LLAMA  # noqa: E402
from tests.generators import random_text  # noqa: E402
from tests.reference import Reference  # noqa: E402
from tests.reference.compare import TOLERANCE, Tally  # noqa: E402
from vllm_promptcache import LLM  # noqa: E402

NUM_MODULES = 6
NUM_LOGPROBS = 50
V2_ONLY = pytest.mark.skipif(not runs_on_v2(), reason="vLLM's V1 runner for CPUs has no stages")


@contextmanager
def engine(model: Path, folder: Path, **options: int) -> Iterator[LLM]:
    """An engine that keeps the modules of a schema in a folder."""
    rng = Random(0)
    texts = [random_text(rng, rng.randint(20, 90)) for _ in range(NUM_MODULES)]
    modules = "".join(f'<module name="m{i}">{text}</module>' for i, text in enumerate(texts))
    sizes = {"block_size": 32, "kv_cache_memory_bytes": 16 << 20, "max_model_len": 1024}
    config = {"dir": str(folder), "verify": True}
    with running_engine(model, prompt_modules=config, **sizes, **options) as llm:
        llm.add_schema(f'<schema name="s"><union>{modules}</union></schema>')
        yield llm


def counts(llm: LLM, reference: Reference) -> tuple[int, int]:
    """Asks for each module, nothing being resident; returns how many were encoded, and read."""
    assert llm.reset_prefix_cache()
    residency, tally = scheduler_of(llm).residency, Tally(TOLERANCE)
    stats = residency.store.stats
    before = residency.encodes.num_started, stats.num_fetches
    prompts = [f'<prompt schema="s"><m{i}/> Which?</prompt>' for i in range(NUM_MODULES)]
    outputs = llm.generate(prompts, greedy(NUM_LOGPROBS, max_tokens=3), use_tqdm=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        tally.add(prompt, difference(reference, output, llm.explain(prompt).to_dict()))
    assert not tally.wrong, tally
    scheduler_of(llm).check_integrity()
    return residency.encodes.num_started - before[0], stats.num_fetches - before[1]


def files(folder: Path, number: int) -> dict[str, list[Path]]:
    """The files of each module, by name, once there are so many of each in folders of their own."""
    found: dict[str, list[Path]] = {}
    for _ in range(200):
        found = {path.name: [] for path in folder.glob("*/*.safetensors")}
        for path in sorted(folder.glob("*/*.safetensors")):
            found[path.name].append(path)
        if len(found) == NUM_MODULES and all(len(paths) == number for paths in found.values()):
            return found
        time.sleep(0.05)
    raise AssertionError(f"{[len(paths) for paths in found.values()]} files of {number}")


@pytest.mark.parametrize(
    "option",
    ["tensor_parallel_size", pytest.param("pipeline_parallel_size", marks=V2_ONLY)],
)
def test_a_module_comes_back_if_every_worker_has_its_shard(option: str, tmp_path: Path) -> None:
    model, folder = LLAMA.save(tmp_path / "model"), tmp_path / "modules"
    reference = Reference(model)
    with engine(model, folder, **{option: 2}) as llm:
        assert counts(llm, reference) == (NUM_MODULES, 0)
        files(folder, 2)
    with engine(model, folder, **{option: 2}) as llm:
        assert counts(llm, reference) == (0, NUM_MODULES)
        lost, damaged, *_ = files(folder, 2).values()
        old = lost[1].read_bytes()
        lost[0].unlink()
        damaged[1].write_bytes(damaged[1].read_bytes()[:-1])
        assert counts(llm, reference) == (2, NUM_MODULES - 2)
        files(folder, 2)
        assert counts(llm, reference) == (0, NUM_MODULES)
        # Each of the two is whole, but they are of two encodes.
        lost[1].write_bytes(old)
        assert counts(llm, reference) == (1, NUM_MODULES - 1)
    with engine(model, folder) as llm:
        assert counts(llm, reference) == (NUM_MODULES, 0)
        files(folder, 3)
        assert counts(llm, reference) == (0, NUM_MODULES)
