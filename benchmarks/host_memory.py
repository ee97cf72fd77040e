"""A module that comes back from host memory, beside one that is encoded, by its length.

    python -m benchmarks.host_memory [MODEL] --runs 5

One engine, whose pool holds one long prompt. Each run takes a new module: its first request encodes
it; then a plain prompt that needs the whole pool drives it out to host memory, and the same request
brings it back. Next to each, the same request is timed with the module in the KV cache, three
times; the difference to their median is what bringing the module costs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from benchmarks.engines import Spread, inspected_engine, scheduler_of
from benchmarks.workloads import words

BLOCK_SIZE = 32
MAX_MODEL_LEN = 2048
LENGTHS = (32, 128, 512, 1024, 1900)
NUM_WARM = 3
QUESTION = "Which word is the longest?"


@dataclass(frozen=True, slots=True)
class Run:
    """Times of a request, in seconds.

    Attributes:
        encode: Its module was encoded for it.
        restore: Its module came back from host memory.
        warm: Its module was resident, just after each of these.
        num_tokens: Tokens of the module.
        num_bytes: Bytes of its blocks.
    """

    encode: float
    restore: float
    warm: tuple[float, float]
    num_tokens: int
    num_bytes: int


@dataclass(slots=True)
class HostMemory:
    """An engine that is asked for one module after the other.

    Attributes:
        llm: The engine.
        rng: Chooses all texts.
    """

    llm: Any
    rng: Random = field(default_factory=lambda: Random(0))

    @classmethod
    def start(cls, model: str) -> HostMemory:
        """Starts an engine in this process."""
        llm = inspected_engine(
            model,
            max_model_len=MAX_MODEL_LEN,
            block_size=BLOCK_SIZE,
            kv_cache_memory_bytes=1 << 30,
            num_gpu_blocks_override=MAX_MODEL_LEN // BLOCK_SIZE + 1,  # one is vLLM's null block
            prompt_modules={"host_memory": 1.0},
        )
        return cls(llm)

    def run(self, num_words: int) -> Run:
        """Encodes a new module and brings it back, a warm request behind each."""
        text = words(self.rng, num_words)
        info = self.llm.add_schema(f'<schema name="s"><module name="m">{text}</module></schema>')
        encode = self._ask(num_encodes=1)
        first_warm = self._warm()
        self._fill_pool()
        restore = self._ask(num_restores=1)
        _, module = info.modules
        num_bytes = module.num_blocks * self._scheduler.block_bytes
        return Run(encode, restore, (first_warm, self._warm()), module.num_tokens, num_bytes)

    @property
    def _scheduler(self) -> Any:
        return scheduler_of(self.llm)

    @property
    def _counts(self) -> tuple[int, int]:
        """Encodes and restores so far."""
        residency = self._scheduler.residency
        return residency.encodes.num_started, residency.store.stats.num_restores

    def _warm(self) -> float:
        return statistics.median(self._ask() for _ in range(NUM_WARM))

    def _ask(self, *, num_encodes: int = 0, num_restores: int = 0) -> float:
        """Times the request; it must take that many encodes and restores."""
        expected = tuple(map(sum, zip(self._counts, (num_encodes, num_restores), strict=True)))
        seconds = self._generate(f'<prompt schema="s"><m/> {QUESTION}</prompt>')
        if self._counts != expected:
            raise RuntimeError(f"encodes and restores: {self._counts}, not {expected}")
        return seconds

    def _fill_pool(self) -> None:
        """Drives all modules out of the pool."""
        vocab_size = self.llm.model_config.get_vocab_size()
        token_ids = [self.rng.randrange(100, vocab_size) for _ in range(MAX_MODEL_LEN - 1)]
        self._generate({"prompt_token_ids": token_ids})
        if self._scheduler.module_store.modules:
            raise RuntimeError("the module is still in the KV cache")

    def _generate(self, prompt: Any) -> float:
        from vllm import SamplingParams

        # What the request before has left behind the module is not to be found.
        params = SamplingParams(max_tokens=1, temperature=0.0, skip_reading_prefix_cache=True)
        begin = time.perf_counter()
        self.llm.generate(prompt, params, use_tqdm=False)
        return time.perf_counter() - begin


def show(by_length: Iterable[Sequence[Run]]) -> None:
    """Prints a line for each length."""
    from rich.console import Console
    from rich.table import Table

    table = Table("tokens", "MiB", "encode", "restore", "warm", "encode", "restore", "ratio")
    table.title = "First use in ms: median (min to max). Right: without the warm request"
    for runs in by_length:
        encode, restore = [run.encode for run in runs], [run.restore for run in runs]
        encode_cost = Spread(tuple(run.encode - run.warm[0] for run in runs))
        restore_cost = Spread(tuple(run.restore - run.warm[1] for run in runs))
        warm = [seconds for run in runs for seconds in run.warm]
        times = (Spread(tuple(seconds)) for seconds in (encode, restore, warm))
        cells = [_cell(spread) for spread in (*times, encode_cost, restore_cost)]
        size = f"{runs[0].num_bytes / 2**20:.1f}"
        ratio = f"{restore_cost.over(encode_cost):.4f}"
        table.add_row(f"{runs[0].num_tokens:,}", size, *cells, ratio)
    Console(width=130).print(table)


def _cell(spread: Spread) -> str:
    low, high = min(spread.seconds) * 1e3, max(spread.seconds) * 1e3
    return f"{spread.median * 1e3:,.1f}\n({low:,.1f} to {high:,.1f})"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="the embedded model if left out")
    parser.add_argument("--runs", type=int, default=5, help="of each length, after one to warm up")
    args = parser.parse_args()
    if args.model is None:
        from vllm_promptcache.models import embedded_model

        args.model = str(embedded_model())
    engine = HostMemory.start(args.model)
    show([[engine.run(length) for _ in range(args.runs + 1)][1:] for length in LENGTHS])


if __name__ == "__main__":
    main()
