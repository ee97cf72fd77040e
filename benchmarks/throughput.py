"""Requests a second over a trace of retrieved documents: prompt modules beside plain vLLM.

    python -m benchmarks.throughput [--model NAME_OR_PATH] [--rounds N]

Each prompt has a few of the documents, popular ones more often (Zipf), in any order, and a question
of its own. All prompts of a round are sent at once, to an engine with prompt modules as they are by
default and to plain vLLM with its prefix cache, in turn. All documents are resident: the first
rounds are not counted.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.engines import Engine, Prompt, start
from benchmarks.workloads import Documents, words
from vllm_promptcache.models import DEFAULT_MODEL, MODELS, embedded_model

NUM_DOCUMENTS = 40
NUM_WORDS = 249
NUM_IMPORTED = 4
MAX_TOKENS = 16
NUM_WARMUPS = 1


class Trace:
    """Prompts that are drawn one after the other; the same for both engines.

    Args:
        num_prompts: Prompts a round.
    """

    def __init__(self, num_prompts: int) -> None:
        self._rng = random.Random(0)
        self._num_prompts = num_prompts
        self.documents = Documents.random(self._rng, NUM_DOCUMENTS, NUM_WORDS)

    def next_round(self) -> tuple[list[Prompt], list[Prompt]]:
        """The prompts of a round: in PML, and as text."""
        drawn = [(self._retrieved(), words(self._rng, 11)) for _ in range(self._num_prompts)]
        modular: list[Prompt] = [self.documents.prompt(*each) for each in drawn]
        return modular, [self.documents.plain(*each) for each in drawn]

    def each_first(self) -> list[Prompt]:
        """A prompt for each document that begins with it: behind others its KV is another one."""
        every = range(NUM_DOCUMENTS)
        return [self.documents.prompt([i, (i + 1) % NUM_DOCUMENTS], "What is it?") for i in every]

    def _retrieved(self) -> list[int]:
        """Different documents, drawn by Zipf's law: the n-th has the weight 1 / n."""
        weights = [1 / rank for rank in range(1, NUM_DOCUMENTS + 1)]
        chosen: list[int] = []
        while len(chosen) < NUM_IMPORTED:
            (found,) = self._rng.choices(range(NUM_DOCUMENTS), weights)
            if found not in chosen:
                chosen.append(found)
        return chosen


def rate(engine: Engine, prompts: Sequence[Prompt]) -> float:
    """Runs prompts at once; returns requests a second."""
    answer = engine.generate_together(list(prompts), max_tokens=MAX_TOKENS)
    return len(prompts) / answer.seconds


def run(modular: Engine, plain: Engine, trace: Trace, num_rounds: int) -> None:
    """Measures and prints requests a second of both, and the ratio."""
    modular.add_schema(trace.documents.compact_schema)
    modular.generate_together(trace.each_first(), max_tokens=1)
    rates = []
    for _ in range(NUM_WARMUPS + num_rounds):
        in_pml, as_text = trace.next_round()
        rates.append((rate(modular, in_pml), rate(plain, as_text)))
    mine, theirs = zip(*rates[NUM_WARMUPS:], strict=True)
    console = Console(soft_wrap=True, highlight=False)
    for name, found in (("prompt modules", mine), ("plain vLLM", theirs)):
        spread = f"{min(found):.2f} to {max(found):.2f}"
        console.print(f"{name}: {statistics.median(found):.2f} requests a second ({spread})")
    ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
    console.print(f"  modules / plain: {ratio:.1f}")


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name of an embedded model, or path")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default: 3)")
    parser.add_argument("--prompts", type=int, default=32, help="prompts a round (default: 32)")
    args = parser.parse_args()
    model = str(embedded_model(args.model) if args.model in MODELS else Path(args.model))
    options = {"max_model_len": 2048, "kv_cache_memory_bytes": 2 << 30, "block_size": 32}
    with (
        start(model, modular=True, options=options) as modular,
        start(model, modular=False, options=options) as plain,
    ):
        run(modular, plain, Trace(args.prompts), args.rounds)


if __name__ == "__main__":
    main()
