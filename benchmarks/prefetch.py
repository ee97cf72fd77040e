"""What prefetching siblings does to the first token, on a trace of sessions.

    python -m benchmarks.prefetch

Each session is about one of some schemas, by Zipf's law, and asks about two documents of it at a
time. The trace is run after a restart with all modules on disk, in a KV cache for all of them, and
then in one for a quarter of them, with host memory. Each run is an engine of its own; settings take
turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from benchmarks.engines import in_process, inspected_engine, scheduler_of
from benchmarks.workloads import words

BLOCK_SIZE = 32
NUM_SCHEMAS = 8
NUM_DOCUMENTS = 12
NUM_WORDS = 220
NUM_SESSIONS = 30
NUM_TURNS = 4
MAX_TOKENS = 16
# Blocks for all documents, and for the prompt that is being answered.
NUM_BLOCKS_FOR_ALL = NUM_SCHEMAS * NUM_DOCUMENTS * (NUM_WORDS // BLOCK_SIZE + 2)
NUM_BLOCKS_FOR_PROMPT = 24


@dataclass(frozen=True, slots=True)
class Run:
    """What a run did.

    Attributes:
        milliseconds: Time to the first token of each request.
        num_restores: Modules that came back.
        num_prefetches: Of these, before a request asked for them.
        num_encodes: Modules that were encoded.
    """

    milliseconds: list[float]
    num_restores: int
    num_prefetches: int
    num_encodes: int


def schemas() -> Iterator[str]:
    """The schemas in PML."""
    rng = Random(0)
    for number in range(NUM_SCHEMAS):
        texts = (words(rng, NUM_WORDS) for _ in range(NUM_DOCUMENTS))
        modules = "".join(f'<module name="d{i}">{text}</module>' for i, text in enumerate(texts))
        yield f'<schema name="s{number}">{modules}</schema>'


def trace() -> Iterator[str]:
    """The prompts in PML."""
    rng = Random(1)
    weights = [1 / rank for rank in range(1, NUM_SCHEMAS + 1)]
    for number in rng.choices(range(NUM_SCHEMAS), weights, k=NUM_SESSIONS):
        for _ in range(NUM_TURNS):
            first, second = sorted(rng.sample(range(NUM_DOCUMENTS), 2))
            question = words(rng, 8)
            yield f'<prompt schema="s{number}"><d{first}/><d{second}/>{question}?</prompt>'


def run(model: str, folder: str, share: float, *, prefetch: bool, warm: bool = False) -> Run:
    """Runs the trace.

    Args:
        model: A folder.
        folder: Where modules are on disk.
        share: Of all modules' blocks, those that the KV cache has.
        prefetch: The engine's option.
        warm: Only encode all modules, so that they are on disk.
    """
    from vllm import SamplingParams

    llm = inspected_engine(
        model,
        max_model_len=4096,
        block_size=BLOCK_SIZE,
        kv_cache_memory_bytes=2 << 30,
        num_gpu_blocks_override=int(share * NUM_BLOCKS_FOR_ALL) + NUM_BLOCKS_FOR_PROMPT,
        disable_log_stats=False,
        prompt_modules={"dir": folder, "host_memory": 2.0, "prefetch": prefetch},
    )
    for schema in schemas():
        llm.add_schema(schema, warm=warm)
    params = SamplingParams(max_tokens=MAX_TOKENS, ignore_eos=True, temperature=0.0)
    outputs = [
        llm.generate([prompt], params, use_tqdm=False)[0] for prompt in ([] if warm else trace())
    ]
    residency = scheduler_of(llm).residency
    stats = residency.store.stats
    llm.llm_engine.engine_core.shutdown()  # waits for the files
    milliseconds = [1000 * output.metrics.first_token_latency for output in outputs]
    num_encodes = residency.encodes.num_started
    return Run(milliseconds, stats.num_restores, stats.num_prefetches, num_encodes)


def measure(model: str, num_runs: int) -> Iterator[tuple[float, bool, Run]]:
    """Share of the KV cache, setting and run."""
    with tempfile.TemporaryDirectory() as folder:
        in_process(run, model, folder, 1.0, prefetch=False, warm=True)
        for share in (1.0, 0.25):
            for _ in range(num_runs):
                for prefetch in (False, True):
                    yield share, prefetch, in_process(run, model, folder, share, prefetch=prefetch)


def show(results: list[tuple[float, bool, Run]]) -> None:
    """Prints the table; a spread is that of the runs."""
    from rich.console import Console
    from rich.table import Table

    table = Table("KV cache", "prefetch", "first token, mean", "median", "came back", "encoded")
    for share, prefetch in sorted({(share, prefetch) for share, prefetch, _ in results}):
        runs = [run for *setting, run in results if setting == [share, prefetch]]
        means = [statistics.fmean(run.milliseconds) for run in runs]
        medians = [statistics.median(run.milliseconds) for run in runs]
        table.add_row(
            f"{share:.0%}",
            "on" if prefetch else "off",
            *(
                f"{statistics.median(v):.1f} ms ({min(v):.1f}-{max(v):.1f})"
                for v in (means, medians)
            ),
            f"{runs[0].num_restores}, ahead {runs[0].num_prefetches}",
            str(runs[0].num_encodes),
        )
    Console(width=110).print(table)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="the embedded model if left out")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    if args.model is None:
        from vllm_promptcache.models import embedded_model

        args.model = str(embedded_model())
    show(list(measure(args.model, args.runs)))


if __name__ == "__main__":
    main()
