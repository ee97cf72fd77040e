"""A restart with modules on disk, beside one that encodes them again.

    python -m benchmarks.restart MODEL --modules 50 --tokens 500

Each start is a process of its own. Times are of the first use of all modules, without the start of
the engine: reading, checking and copying them, or encoding them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

from benchmarks.engines import in_process, inspected_engine, scheduler_of
from benchmarks.workloads import words


@dataclass(frozen=True, slots=True)
class Run:
    """What a start did.

    Attributes:
        seconds: First use of all modules.
        num_encodes: Modules that were encoded.
        num_fetches: Modules that were read from disk.
        num_bytes: Size of all files.
    """

    seconds: float
    num_encodes: int
    num_fetches: int
    num_bytes: int


def start(model: str, folder: str, num_modules: int, num_words: int) -> Run:
    """Starts an engine, uses all modules of a schema and waits until they are on disk."""
    num_blocks = num_modules * (num_words // 32 + 8)
    llm = inspected_engine(
        model,
        max_model_len=2048,
        kv_cache_memory_bytes=4 << 30,
        num_gpu_blocks_override=num_blocks,
        prompt_modules={"dir": folder},
    )
    rng = Random(0)
    texts = (words(rng, num_words) for _ in range(num_modules))
    modules = "".join(f'<module name="m{i}">{text}</module>' for i, text in enumerate(texts))
    schema = f'<schema name="restart"><union>{modules}</union></schema>'
    begin = time.perf_counter()
    llm.add_schema(schema, warm=True)
    seconds = time.perf_counter() - begin
    residency = scheduler_of(llm).residency
    num_encodes = residency.encodes.num_started
    llm.llm_engine.engine_core.shutdown()  # waits for the files
    sizes = [path.stat().st_size for path in Path(folder).glob("*/*.safetensors")]
    return Run(seconds, num_encodes, residency.store.stats.num_fetches, sum(sizes))


def main() -> None:
    """Reads the command line and prints both starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="the embedded model if left out")
    parser.add_argument("--modules", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=500, help="a module, about")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    if args.model is None:
        from vllm_promptcache.models import embedded_model

        args.model = str(embedded_model())
    for number in range(args.runs):
        with tempfile.TemporaryDirectory() as folder:
            cold, warm = (
                in_process(start, args.model, folder, args.modules, args.tokens) for _ in range(2)
            )
        print(
            f"run {number}: encode {cold.seconds:.2f} s ({cold.num_encodes} encodes), restart "
            f"{warm.seconds:.2f} s ({warm.num_encodes} encodes, {warm.num_fetches} read, "
            f"{warm.num_bytes / 2**20:.0f} MiB), ratio {cold.seconds / warm.seconds:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
