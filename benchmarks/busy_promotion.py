"""Promotion under steady load: how much is served exactly, and what users feel of it.

Clients ask without a pause for combinations of documents, popular ones more often (Zipf). The same
trace is served with promotion and without, by turns, each for some minutes in an engine of its own.

    python -m benchmarks.busy_promotion [--model M] [--clients 16] [--minutes 3] [--rounds 1]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.engines import in_process, inspected_engine, scheduler_of
from benchmarks.workloads import Documents, words
from vllm_promptcache.models import MODELS, embedded_model

NUM_DOCUMENTS = 40
NUM_WORDS = 60
NUM_IMPORTED = 3
NUM_COMBINATIONS = 24
MAX_TOKENS = 24
NUM_QUESTION_WORDS = 12
# Seconds in which the share that is served exactly is told.
WINDOW_S = 30


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the clients saw.

    Attributes:
        first_token_s: Time to the first token of each request, in seconds.
        between_tokens_s: Time from a token to the next one.
        num_requests: Requests that ended, in each window.
        num_exact: Those of them that were served exactly.
        num_promoted: Combinations that were encoded exactly.
    """

    first_token_s: list[float]
    between_tokens_s: list[float]
    num_requests: list[int]
    num_exact: list[int]
    num_promoted: int


@dataclass(slots=True)
class Clients:
    """Clients of an engine in this process, each with one request at a time.

    Attributes:
        llm: The engine.
        documents: What the prompts are about.
        num_clients: How many there are.
    """

    llm: Any
    documents: Documents
    num_clients: int
    _rng: Random = field(default_factory=lambda: Random(1))
    # When a live request was sent or had its last token, and how many tokens it has.
    _live: dict[str, tuple[float, int]] = field(default_factory=dict)
    _first_s: list[float] = field(default_factory=list)
    _between_s: list[float] = field(default_factory=list)

    def run(self, seconds: float) -> Outcome:
        """Asks for a while."""
        prompts, stats = self._prompts(), scheduler_of(self.llm).module_store.stats
        start = time.perf_counter()
        num_requests, num_exact = [0], [0]
        num_before = stats.num_promoted_requests
        while (elapsed := time.perf_counter() - start) < seconds:
            if elapsed > WINDOW_S * len(num_requests):
                num_exact[-1] = stats.num_promoted_requests - num_before
                num_before = stats.num_promoted_requests
                num_requests.append(0)
                num_exact.append(0)
            while len(self._live) < self.num_clients:
                self._send(next(prompts))
            num_requests[-1] += self._step()
        num_exact[-1] = stats.num_promoted_requests - num_before
        return Outcome(
            self._first_s, self._between_s, num_requests, num_exact, stats.num_promotions
        )

    def _prompts(self) -> Iterator[str]:
        rng = self._rng
        combinations = [
            sorted(rng.sample(range(NUM_DOCUMENTS), NUM_IMPORTED)) for _ in range(NUM_COMBINATIONS)
        ]
        weights = [1 / (rank + 1) for rank in range(NUM_COMBINATIONS)]
        while True:
            (combination,) = rng.choices(combinations, weights)
            yield self.documents.prompt(combination, words(rng, NUM_QUESTION_WORDS))

    def _send(self, prompt: str) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
        sent_s = time.perf_counter()
        (internal_id,) = self.llm.enqueue(prompt, params, use_tqdm=False)
        # `LLM` asks for whole answers only.
        states = self.llm.llm_engine.output_processor.request_states
        states[internal_id].output_kind = RequestOutputKind.CUMULATIVE
        self._live[internal_id.rsplit("-", 1)[0]] = sent_s, 0

    def _step(self) -> int:
        """Runs a step; returns how many requests it ended."""
        outputs, num_ended = self.llm.llm_engine.step(), 0
        now = time.perf_counter()
        for output in outputs:
            before_s, num_before = self._live.pop(output.request_id)
            num_tokens = len(output.outputs[0].token_ids)
            if num_tokens > num_before:
                (self._between_s if num_before else self._first_s).append(now - before_s)
                before_s = now
            num_ended += output.finished
            if not output.finished:
                self._live[output.request_id] = before_s, num_tokens
        return num_ended


def run(model: str, num_clients: int, seconds: float, promote_after: int) -> Outcome:
    """Serves the clients with an engine of its own; all modules are warm."""
    llm = inspected_engine(
        model,
        prompt_modules={"promote_after": promote_after, "max_promoted_share": 0.5},
        kv_cache_memory_bytes=2 << 30,
        max_model_len=4096,
    )
    documents = Documents.random(Random(0), NUM_DOCUMENTS, NUM_WORDS)
    llm.add_schema(documents.schema, warm=True)
    return Clients(llm, documents, num_clients).run(seconds)


def table(outcomes: list[tuple[str, Outcome]]) -> Table:
    """One line for each run."""
    names = ("requests", "first token, ms: p50", "p95", "between tokens, ms: p50", "p95", "mean")
    report = Table("promotion", *names, "promoted", f"served exactly, each {WINDOW_S} s")
    for name, outcome in outcomes:
        first, between = (
            np.array(seconds) * 1000
            for seconds in (outcome.first_token_s, outcome.between_tokens_s)
        )
        figures = (*np.percentile(first, [50, 95]), *np.percentile(between, [50, 95]))
        shares = (
            f"{num_exact / max(num, 1):.0%}"
            for num, num_exact in zip(outcome.num_requests, outcome.num_exact, strict=True)
        )
        report.add_row(
            name,
            str(sum(outcome.num_requests)),
            *(f"{figure:.1f}" for figure in (*figures, between.mean())),
            str(outcome.num_promoted),
            " ".join(shares),
        )
    return report


def main() -> None:
    """Runs both by turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m", help="folder, or embedded model")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    model = str(embedded_model(args.model)) if args.model in MODELS else args.model
    outcomes = []
    for name, promote_after in [("off", 0), ("on", 2)] * args.rounds:
        seconds = args.minutes * 60
        outcomes.append((name, in_process(run, model, args.clients, seconds, promote_after)))
        Console(width=150).print(table(outcomes))


if __name__ == "__main__":
    main()
