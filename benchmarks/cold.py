"""Documents that never come back: encoded for whoever asks for them, or computed by the prompt.

    python -m benchmarks.cold [--model M] [--requests 40] [--json FILE]

Each prompt has some documents in any order and a question. Most documents come again, popular ones
more often; a share of them is read once. At the start no module is resident. Requests come one at a
time, at once or with time between them, in which the engine does what it has put off. Work is all
that was done, also between requests.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.engines import in_process, inspected_engine, scheduler_of
from benchmarks.workloads import words
from vllm_promptcache.models import MODELS, embedded_model

NUM_DOCUMENTS = 24
NUM_IMPORTED = 4
NUM_WORDS = 120
SHARES = (0.1, 0.5)
# Options of each system, and whether it has time between requests.
SYSTEMS: dict[str, tuple[dict[str, Any], bool]] = {
    "encode": ({"cold": "encode"}, False),
    "plain": ({"cold": "plain"}, False),
    "plain, time between": ({"cold": "plain"}, True),
}


@dataclass(frozen=True, slots=True)
class Trace:
    """Prompts and their schema.

    Attributes:
        documents: Texts of the modules: those that come again, then those that do not.
        prompts: Numbers of the documents of each prompt.
    """

    documents: list[str]
    prompts: list[list[int]]

    @classmethod
    def make(cls, num_requests: int, share: float) -> Trace:
        """Draws documents by Zipf's law; `share` of them is read once."""
        rng = Random(0)
        weights = [1 / (rank + 1) for rank in range(NUM_DOCUMENTS)]
        num_documents, prompts = NUM_DOCUMENTS, []
        for _ in range(num_requests):
            chosen: list[int] = []
            while len(chosen) < NUM_IMPORTED:
                number = rng.choices(range(NUM_DOCUMENTS), weights)[0]
                if rng.random() < share:
                    number, num_documents = num_documents, num_documents + 1
                if number not in chosen:
                    chosen.append(number)
            prompts.append(chosen)
        return cls([words(rng, NUM_WORDS) for _ in range(num_documents)], prompts)

    @property
    def schema(self) -> str:
        """The schema in PML."""
        modules = (f'<module name="d{i}">{text}.</module>' for i, text in enumerate(self.documents))
        return f'<schema name="s" layout="compact"><user>{"".join(modules)}</user></schema>'

    def texts(self) -> Iterator[str]:
        """The prompts in PML."""
        for number, chosen in enumerate(self.prompts):
            imports = "".join(f"<d{i}/>" for i in chosen)
            yield f'<prompt schema="s">{imports}<user>And {number}?</user></prompt>'


@dataclass(slots=True)
class Outcome:
    """What a system made of a trace.

    Attributes:
        first_token_s: Time to the first token of each request, in seconds.
        total_s: Time that all requests took, and what was done between them, in seconds.
        num_computed_tokens: Tokens that were run through the model, encodes included.
        num_encodes: Modules that were encoded.
    """

    first_token_s: list[float] = field(default_factory=list)
    total_s: float = 0.0
    num_computed_tokens: int = 0
    num_encodes: int = 0


def run(
    model: str, options: dict[str, Any], has_time: bool, num_requests: int, share: float
) -> Outcome:
    """Asks the prompts of a trace one after the other, in this process."""
    from vllm import SamplingParams

    trace, outcome = Trace.make(num_requests, share), Outcome()
    llm = inspected_engine(
        model,
        prompt_modules=options,
        max_model_len=2048,
        max_num_batched_tokens=2048,
        kv_cache_memory_bytes=2**31,
    )
    scheduler = scheduler_of(llm)
    _count(scheduler, outcome)
    llm.add_schema(trace.schema)
    llm.generate("Warm up.", SamplingParams(max_tokens=2), use_tqdm=False)
    outcome.num_computed_tokens = 0
    first = SamplingParams(max_tokens=1, temperature=0)
    begin = time.perf_counter()
    for text in trace.texts():
        start = time.perf_counter()
        llm.generate(text, first, use_tqdm=False)
        outcome.first_token_s.append(time.perf_counter() - start)
        while has_time and scheduler.has_requests():
            llm.llm_engine.step()
    outcome.total_s = time.perf_counter() - begin
    outcome.num_encodes = scheduler.residency.encodes.num_started
    return outcome


def _count(scheduler: Any, outcome: Outcome) -> None:
    """Counts all tokens that are scheduled."""
    schedule = scheduler.schedule

    def counted(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        outcome.num_computed_tokens += output.total_num_scheduled_tokens
        return output

    scheduler.schedule = counted


def print_table(outcomes: dict[str, dict[str, Outcome]]) -> None:
    """Prints what each system made of each trace."""
    for title, systems in outcomes.items():
        table = Table("system", title=title, title_justify="left")
        for header in ("first token, mean", "p50", "p95", "work", "tokens computed", "encodes"):
            table.add_column(header, justify="right")
        for name, outcome in systems.items():
            milliseconds = np.array(outcome.first_token_s) * 1e3
            times = [np.mean(milliseconds), *np.percentile(milliseconds, [50, 95])]
            table.add_row(
                name,
                *(f"{value:,.0f} ms" for value in times),
                f"{outcome.total_s:.1f} s",
                f"{outcome.num_computed_tokens:,}",
                str(outcome.num_encodes),
            )
        Console().print(table)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="folder, or embedded model")
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    model = str(embedded_model(args.model)) if args.model in MODELS else args.model
    outcomes = {
        f"{share:.0%} of the documents come once": {
            name: in_process(run, model, options, has_time, args.requests, share)
            for name, (options, has_time) in SYSTEMS.items()
        }
        for share in SHARES
    }
    print_table(outcomes)
    if args.json is not None:
        found = {t: {n: asdict(o) for n, o in systems.items()} for t, systems in outcomes.items()}
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
