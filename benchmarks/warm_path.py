"""What a warm request costs beside the model: bytes on its way, and the time of each part.

    python -m benchmarks.warm_path [--model NAME_OR_PATH] [--runs N]

Each request has ten modules of 500 tokens, all resident, in random order, and a question of its
own. Plain requests of as many tokens, by token ids, find the same share in the prefix cache. All of
an engine runs in one process, so that its parts can be timed; each request generates one token.
Bytes are those that would go from process to process.
"""

from __future__ import annotations

import argparse
import pickle
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.engines import in_process, inspected_engine, scheduler_of
from benchmarks.steps import cpu_name
from benchmarks.workloads import Documents, words
from vllm_promptcache.models import DEFAULT_MODEL, MODELS, embedded_model

NUM_MODULES = 10
NUM_WORDS = 499
NUM_QUESTION = 11
NUM_WARMUPS = 5
REPAIR = "query:15"
FRONT_END, REQUEST, ADD, SCHEDULE, STEPS, WORKER = PARTS = (
    "front end, us",
    "request to the engine, bytes",
    "add_request, us",
    "schedule, us",
    "steps to the workers, bytes",
    "worker's part, us",
)


@dataclass(slots=True)
class Parts:
    """What each part of the running request took so far; a step adds to it."""

    taken: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def timed(self, part: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """`run`, whose time counts for a part."""

        def wrapped(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return run(*args, **options)
            finally:
                self.taken[part] += (time.perf_counter() - began) * 1e6

        return wrapped

    def weighed(
        self, part: str, run: Callable[..., Any], size: Callable[[Any], int]
    ) -> Callable[..., Any]:
        """`run`, the size of whose result, or else of whose argument, counts for a part."""

        def wrapped(*args: Any) -> Any:
            result = run(*args)
            self.taken[part] += size(args[0] if result is None else result)
            return result

        return wrapped

    def end(self) -> dict[str, float]:
        """Returns what was taken and begins again."""
        taken, self.taken = self.taken, dict.fromkeys(PARTS, 0.0)
        return taken


def instrument_worker(parts: Parts) -> None:
    """Times what the worker does for modules, of engines that start later in this process."""
    from vllm_promptcache.worker.module_worker import ModuleWorker
    from vllm_promptcache.worker.placement import Placement

    names = ("begin", "before_forward", "after_forward", "split_rows", "place", "report")
    for owner, name in [*((ModuleWorker, name) for name in names), (Placement, "begin")]:
        setattr(owner, name, parts.timed(WORKER, getattr(owner, name)))


def instrument_engine(parts: Parts, llm: Any) -> None:
    """Times the scheduler of an engine and weighs what it gets and gives."""
    from vllm.v1.serial_utils import MsgpackEncoder

    encoder, scheduler = MsgpackEncoder(), scheduler_of(llm)
    client = llm.llm_engine.engine_core
    client.add_request = parts.weighed(
        REQUEST, client.add_request, lambda it: sum(len(part) for part in encoder.encode(it))
    )
    scheduler.add_request = parts.timed(ADD, scheduler.add_request)
    scheduler.schedule = parts.weighed(
        STEPS, parts.timed(SCHEDULE, scheduler.schedule), lambda it: len(pickle.dumps(it))
    )


class Requests:
    """Warm requests of one engine.

    Args:
        llm: The engine.
        parts: What its parts take.
    """

    def __init__(self, llm: Any, parts: Parts) -> None:
        from vllm import SamplingParams

        self._llm, self._parts, self._rng = llm, parts, random.Random(0)
        self._params = SamplingParams(max_tokens=1, temperature=0.0)
        self._tokenizer = llm.get_tokenizer()
        self._documents = Documents.random(self._rng, NUM_MODULES, NUM_WORDS)
        llm.add_schema(self._documents.schema, warm=True)
        # One that stands first is read as another variant, which its first use encodes.
        for first in range(NUM_MODULES):
            self._generate(self._documents.prompt([first], "What?"))
        self._prefix = self._encode(words(self._rng, NUM_MODULES * (NUM_WORDS + 1)))

    def modular(self, repair: str) -> dict[str, float]:
        """Runs a request with modules."""
        order = self._rng.sample(range(NUM_MODULES), NUM_MODULES)
        question = words(self._rng, NUM_QUESTION)
        prompt = self._documents.prompt(order, question, repair=repair)
        began = time.perf_counter()
        self._llm.front_end.plan(prompt)
        seconds = time.perf_counter() - began
        return {**self._generate(prompt), FRONT_END: seconds * 1e6}

    def plain(self) -> dict[str, float]:
        """Runs a plain request that finds its prefix."""
        token_ids = self._prefix + self._encode(words(self._rng, NUM_QUESTION))
        return self._generate({"prompt_token_ids": token_ids})

    def _generate(self, prompt: Any) -> dict[str, float]:
        self._parts.end()
        self._llm.generate([prompt], self._params, use_tqdm=False)
        return self._parts.end()

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def measure(model: str, num_runs: int) -> dict[str, list[dict[str, float]]]:
    """Runs requests of all kinds in turn; what each took, by kind."""
    parts = Parts()
    instrument_worker(parts)
    llm = inspected_engine(model, max_model_len=8192, kv_cache_memory_bytes=2 << 30)
    instrument_engine(parts, llm)
    requests = Requests(llm, parts)
    kinds: dict[str, Callable[[], dict[str, float]]] = {
        "plain, prefix hit": requests.plain,
        "modules as they are": lambda: requests.modular("none"),
        f"modules, {REPAIR}": lambda: requests.modular(REPAIR),
    }
    rounds = [{kind: run() for kind, run in kinds.items()} for _ in range(NUM_WARMUPS + num_runs)]
    return {kind: [taken[kind] for taken in rounds[NUM_WARMUPS:]] for kind in kinds}


def show(measured: dict[str, list[dict[str, float]]]) -> None:
    """Prints medians and quartiles."""
    table = Table("", *measured, title=f"{NUM_MODULES} modules of {NUM_WORDS + 1} words, warm")
    for part in PARTS:
        table.add_row(part, *(_spread([run[part] for run in runs]) for runs in measured.values()))
    Console(width=110).print(table)


def _spread(values: list[float]) -> str:
    low, median, high = statistics.quantiles(values, n=4)
    return f"{median:,.0f} ({low:,.0f} to {high:,.0f})"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name of an embedded model, or path")
    parser.add_argument("--runs", type=int, default=20, help="requests of each kind (default: 20)")
    args = parser.parse_args()
    print(cpu_name(), file=sys.stderr)
    model = str(embedded_model(args.model)) if args.model in MODELS else args.model
    show(in_process(measure, model, args.runs))


if __name__ == "__main__":
    main()
