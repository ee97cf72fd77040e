"""What a step of the scheduler takes for requests with modules, and for plain ones beside them.

    python -m benchmarks.steps [--rounds N] [SETTING ...]

No model runs: a step is `schedule()` and `update_from_output()`, timed by the thread's own clock,
which stands still while other programs run. A round is as many steps as a block has tokens, so that
each request takes one new block in it. Engines take turns in rounds.
"""

from __future__ import annotations

import argparse
import gc
import os
import pickle
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.workloads import Documents, words

if TYPE_CHECKING:
    from vllm.v1.request import Request

    from benchmarks.modelless import ModellessEngine

BLOCK_SIZE = 32
NUM_RUNNING = 64
NUM_WAITING = 1_000
NUM_RESIDENT = 10_000
CONTEXT_LEN = 100_000
MAX_MODEL_LEN = 131_072
NUM_WARMUPS = 3
# Modules are read as they are: what is measured is the steps, not what is chosen before them.
AS_THEY_ARE = {"repair": "none", "promote_after": 0}


@dataclass(slots=True)
class Steps:
    """An engine whose requests are all running, or wait for good.

    Attributes:
        name: What the table calls it.
        engine: The engine.
        num_free: Blocks that are left to requests before each round; None for all.
        seconds: Time of a step, a mean for each round.
        num_bytes: What the scheduler tells the workers' connector in a step.
    """

    name: str
    engine: ModellessEngine
    num_free: int | None = None
    seconds: list[float] = field(default_factory=list)
    num_bytes: int = 0
    _taken: list[Any] = field(default_factory=list)

    def run_round(self) -> None:
        """Runs a round and takes its time."""
        self._leave_free()
        total = 0.0
        for _ in range(BLOCK_SIZE):
            began = time.thread_time()
            scheduled = self.engine.schedule()
            total += time.thread_time() - began
            answer = self.engine.sample(scheduled)
            began = time.thread_time()
            self.engine.update(scheduled, answer)
            total += time.thread_time() - began
        self.seconds.append(total / BLOCK_SIZE)
        self.num_bytes = len(pickle.dumps(scheduled.kv_connector_metadata))

    def _leave_free(self) -> None:
        if self.num_free is None:
            return
        pool = self.engine.scheduler.kv_cache_manager.block_pool
        pool.free_blocks(self._taken)
        self._taken = pool.get_new_blocks(pool.get_num_free_blocks() - self.num_free)

    def __str__(self) -> str:
        low, median, high = (s * 1e6 for s in statistics.quantiles(self.seconds, n=4))
        return f"{median:,.0f} us ({low:,.0f} to {high:,.0f})"


class Workload:
    """Starts engines and fills them with requests.

    Args:
        model: Folder of a model, for its tokenizer and shape.
    """

    def __init__(self, model: Path) -> None:
        from transformers import AutoTokenizer

        self._model = model
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._rng = random.Random(0)

    def start(self, num_blocks: int, *, is_modular: bool = True) -> ModellessEngine:
        """Starts an engine."""
        from benchmarks.modelless import ModellessEngine

        return ModellessEngine.start(
            self._model,
            self._tokenizer,
            num_blocks,
            modules=AS_THEY_ARE if is_modular else None,
            block_size=BLOCK_SIZE,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=2 * NUM_RUNNING,  # so that it is room that waiting requests lack
            max_num_batched_tokens=8192,
            hf_overrides={"max_position_embeddings": MAX_MODEL_LEN},
        )

    def token_ids(self, num_tokens: int) -> list[int]:
        """A plain prompt that no cache knows."""
        return [self._rng.randrange(100, 10_000) for _ in range(num_tokens)]

    def documents(self, num_documents: int, num_words: int) -> Documents:
        """A schema."""
        return Documents.random(self._rng, num_documents, num_words)

    def question(self, num_words: int) -> str:
        """A text of its own."""
        return words(self._rng, num_words)


def run_until_decoding(engine: ModellessEngine, requests: list[Request]) -> None:
    """Runs steps until all of `requests` have generated a token."""
    while not all(request.num_output_tokens for request in requests):
        engine.step()


def decode(
    workload: Workload, *, num_documents: int = 4, num_words: int = 200, num: int = NUM_RUNNING
) -> tuple[list[Steps], str]:
    """Running requests, in plain vLLM, beside prompt modules, and with modules."""
    num_tokens = num_documents * num_words * 2 + num * 100
    num_blocks = (num_tokens + num * 4096 + num * num_documents * num_words * 2) // BLOCK_SIZE
    engines = [workload.start(num_blocks, is_modular=is_on) for is_on in (False, True, True)]
    documents = workload.documents(num_documents, num_words)
    *plain, modular = engines
    modular.front_end.add_schema(documents.schema)
    order = list(range(num_documents))
    # Of all lengths, so that as many requests take a new block in each step.
    prompts = [documents.prompt(order, workload.question(8 + i % BLOCK_SIZE)) for i in range(num)]
    max_tokens = MAX_MODEL_LEN
    running = [modular.add(prompt, max_tokens) for prompt in prompts]
    for engine in plain:
        alike = [
            engine.add_plain(workload.token_ids(r.num_prompt_tokens), max_tokens) for r in running
        ]
        run_until_decoding(engine, alike)
    run_until_decoding(modular, running)
    names = ("plain vLLM", "plain requests", "with modules")
    num_tokens = max(request.num_prompt_tokens for request in running)
    what = f"{num} running, {num_tokens:,} tokens"
    return [Steps(name, engine) for name, engine in zip(names, engines, strict=True)], what


def waiting(workload: Workload) -> tuple[list[Steps], str]:
    """The same with many requests that wait for room."""
    measured, what = decode(workload)
    *plain, modular = measured
    # They need more blocks than are ever left to them.
    text = workload.question(6_000)
    documents = workload.documents(4, 200)
    modular.engine.front_end.add_schema(documents.schema.replace("documents", "others"))
    pml = documents.prompt([0, 1, 2, 3], text).replace("documents", "others")
    for steps in measured:
        steps.num_free = 2 * NUM_RUNNING
        steps.run_round()  # so that nobody is let in
    plan = modular.engine.plan(pml)
    for _ in range(NUM_WAITING):
        modular.engine.add_planned(plan, 1)
        for steps in plain:
            steps.engine.add_plain(workload.token_ids(len(plan.prompt_token_ids)), 1)
    return measured, f"{what}, {NUM_WAITING:,} waiting"


def resident(workload: Workload) -> tuple[list[Steps], str]:
    """The same with many resident modules."""
    measured, what = decode(workload)
    # Those of the requests are among them, and the requests stay.
    engine = workload.start(NUM_RESIDENT * 4 + NUM_RUNNING * 400)
    num_each, num_imports = 1_000, 100
    for number in range(NUM_RESIDENT // num_each):
        documents = workload.documents(num_each, 40)
        name = f"many{number}"
        engine.front_end.add_schema(documents.schema.replace("documents", name))
        for start in range(0, num_each, num_imports):
            order = list(range(start, start + num_imports))
            engine.add(documents.prompt(order, "What?").replace("documents", name), 1)
            while engine.scheduler.requests:
                engine.step()
    documents = workload.documents(4, 200)
    engine.front_end.add_schema(documents.schema)
    prompts = [
        documents.prompt([0, 1, 2, 3], workload.question(8 + i % BLOCK_SIZE))
        for i in range(NUM_RUNNING)
    ]
    run_until_decoding(engine, [engine.add(prompt, MAX_MODEL_LEN) for prompt in prompts])
    num = len(engine.scheduler.module_store)
    measured.append(Steps(f"with modules, {num:,} resident", engine))
    return measured, what


SETTINGS: dict[str, Callable[[Workload], tuple[list[Steps], str]]] = {
    "running": decode,
    "waiting": waiting,
    "resident": resident,
    "long": partial(decode, num_documents=20, num_words=CONTEXT_LEN // 20, num=1),
}


def measure(measured: list[Steps], num_rounds: int) -> None:
    """Runs rounds of all engines in turn."""
    for steps in measured:
        for _ in range(NUM_WARMUPS):
            steps.run_round()
        steps.seconds.clear()
    gc.collect()
    gc.freeze()
    gc.disable()
    for number in range(num_rounds):
        for steps in measured if number % 2 else reversed(measured):
            steps.run_round()
    gc.enable()
    gc.unfreeze()


def show(measured: list[Steps], what: str) -> None:
    """Prints the table of one setting."""
    from rich.console import Console
    from rich.table import Table

    table = Table("requests", "a step, median of rounds (quartiles)", "to plain", "bytes")
    table.title = what
    plain = measured[1]
    for steps in measured:
        ratio = statistics.median(
            mine / theirs for mine, theirs in zip(steps.seconds, plain.seconds, strict=True)
        )
        table.add_row(steps.name, str(steps), f"{ratio:.3f}", f"{steps.num_bytes:,}")
    Console(width=100).print(table)


def cpu_name() -> str:
    """What Linux says of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, 'unknown processor')}, {os.cpu_count()} cores"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", help=f"{', '.join(SETTINGS)} (default: all)")
    parser.add_argument("--model", type=Path, help="folder; the embedded model if left out")
    parser.add_argument("--rounds", type=int, default=25, help=f"of {BLOCK_SIZE} steps each")
    args = parser.parse_args()
    if unknown := set(args.settings) - SETTINGS.keys():
        parser.error(f"no such setting: {', '.join(sorted(unknown))}")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if args.model is None:
        from vllm_promptcache.models import embedded_model

        args.model = embedded_model()
    print(cpu_name(), file=sys.stderr)
    for name in args.settings or SETTINGS:
        measured, what = SETTINGS[name](Workload(args.model))
        measure(measured, args.rounds)
        show(measured, what)


if __name__ == "__main__":
    main()
