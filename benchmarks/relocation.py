"""Any five of 200 documents: what it costs to relocate modules, beside encoding and reusing them.

    python -m benchmarks.relocation

The schema has a compact layout and is far longer than the model's context. Each run takes five
documents that were not used before: the first request encodes them (and relocates all but its first
to their places), one with another order relocates them, and the same again finds them there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from random import Random
from typing import Any

from benchmarks.engines import inspected_engine, scheduler_of
from benchmarks.workloads import words

NUM_DOCUMENTS = 200
NUM_IMPORTED = 5
KINDS = ("encoded", "relocated", "reused")


def schema(num_words: int) -> str:
    """The schema in PML."""
    rng = Random(0)
    texts = (words(rng, num_words) for _ in range(NUM_DOCUMENTS))
    modules = "".join(f'<module name="d{i}">{text}.</module>' for i, text in enumerate(texts))
    return f'<schema name="shelf" layout="compact">Documents. {modules}</schema>'


def prompts(num_runs: int) -> Iterator[tuple[str, str, str]]:
    """For each run a prompt, one with the same documents in another order, and that one again."""
    numbers = Random(1).sample(range(NUM_DOCUMENTS), NUM_IMPORTED * num_runs)
    for first in range(0, len(numbers), NUM_IMPORTED):
        chosen = numbers[first : first + NUM_IMPORTED]
        one, other = (
            f'<prompt schema="shelf">{"".join(f"<d{i}/>" for i in order)} Which one?</prompt>'
            for order in (chosen, chosen[::-1])
        )
        yield one, other, other


def measure(llm: Any, num_runs: int) -> tuple[dict[str, list[float]], float]:
    """Milliseconds to the first token by kind of request, and how many documents were relocated.

    The second is the mean over the requests in another order; the first has `num_runs` each.
    """
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=1, temperature=0.0)
    residency = scheduler_of(llm).residency
    milliseconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    relocated: list[int] = []
    # The first run tells the scheduler that the workers can relocate modules.
    for number, run in enumerate(prompts(num_runs + 1)):
        for kind, prompt in zip(KINDS, run, strict=True):
            before = residency.encodes.num_started, residency.store.stats.num_relocations
            begin = time.perf_counter()
            llm.generate([prompt], params, use_tqdm=False)
            elapsed = 1000 * (time.perf_counter() - begin)
            num_encodes = residency.encodes.num_started - before[0]
            num_relocations = residency.store.stats.num_relocations - before[1]
            if number:
                check(kind, num_encodes, num_relocations)
                milliseconds[kind].append(elapsed)
                relocated += [num_relocations] if kind == "relocated" else []
    return milliseconds, statistics.fmean(relocated)


def check(kind: str, num_encodes: int, num_relocations: int) -> None:
    """Makes sure that a request did what it is taken for.

    In the other order the new first document is where it was encoded, and the one in the middle
    stays if those around it are of one length.
    """
    assert num_encodes == (NUM_IMPORTED if kind == "encoded" else 0), (kind, num_encodes)
    at_least, at_most = (0, 0) if kind == "reused" else (NUM_IMPORTED - 2, NUM_IMPORTED)
    assert at_least <= num_relocations <= at_most, (kind, num_relocations)


def main() -> None:
    """Reads the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="the embedded model if left out")
    parser.add_argument("--tokens", type=int, default=500, help="a document, about")
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    from rich.console import Console
    from rich.table import Table

    from vllm_promptcache.models import embedded_model

    llm = inspected_engine(
        args.model or str(embedded_model()),
        max_model_len=8192,
        max_num_batched_tokens=8192,
        kv_cache_memory_bytes=4 << 30,
        prompt_modules={},
    )
    begin = time.perf_counter()
    llm.add_schema(schema(args.tokens))
    print(f"compiled in {time.perf_counter() - begin:.2f} s")
    milliseconds, num_relocated = measure(llm, args.runs)
    warm = statistics.median(milliseconds["reused"])
    numbers = {"encoded": NUM_IMPORTED, "relocated": num_relocated, "reused": NUM_IMPORTED}
    cost = {
        kind: (statistics.median(milliseconds[kind]) - warm) / number
        for kind, number in numbers.items()
    }
    table = Table("documents are", "first token", "spread", "a document", "to encoding it")
    for kind, values in milliseconds.items():
        table.add_row(
            kind,
            f"{statistics.median(values):.1f} ms",
            f"{min(values):.1f} to {max(values):.1f}",
            f"{cost[kind]:.1f} ms",
            f"{cost[kind] / cost['encoded']:.1%}",
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
