"""Exact answers over a trace: promotion and free order beside modules alone and plain prefill.

Requests ask about groups of documents, popular groups more often, with the documents in the order
of the group or in another one each time. Between two requests the engine has time, in which
promotions run; that time is reported and is no part of the time to the first token.

    python -m benchmarks.promotion --model M --data FILE.jsonl [--requests 60] [--groups 8]
        [--shuffle] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.engines import in_process, inspected_engine, scheduler_of
from vllm_promptcache.models import MODELS, embedded_model
from vllm_promptcache.quality.evaluate.contenders import Contender
from vllm_promptcache.quality.evaluate.data import Row, read_data
from vllm_promptcache.quality.evaluate.metrics import score
from vllm_promptcache.quality.evaluate.prompts import TASKS, Writer

WRITER = Writer(has_roles=True)


@dataclass(frozen=True, slots=True)
class System:
    """A way to serve the trace.

    Attributes:
        name: For the table.
        attributes: Of the schemas.
        reuse: Whether modules are reused; if not, vLLM's prefix cache still is.
        options: Of prompt modules.
    """

    name: str
    attributes: str = ""
    reuse: bool = True
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Group(Contender):
    """How a group of documents is written as a schema of its own, for one system.

    Attributes:
        number: Of the group.
        system: What serves it.
    """

    number: int = 0
    system: System = System("none")

    @property
    def schema_name(self) -> str:
        """Name of the group's schema."""
        return f"g{self.number}"

    @property
    def schema_attributes(self) -> str:
        """Attributes of the schema, in PML."""
        return f' layout="compact" {self.system.attributes}'


REPAIR = ("repair", "query:15")
PROMOTE = ("promote_after", 2)
SYSTEMS = (
    System("plain, prefix cache", reuse=False),
    System("modules alone"),
    System("repaired", options=(REPAIR,)),
    System("repaired, promoted after 2", options=(REPAIR, PROMOTE)),
    System("repaired, promoted after 2, any order", 'order="any"', options=(REPAIR, PROMOTE)),
    System("exact", 'encode="exact"'),
    System("exact, any order", 'encode="exact" order="any"'),
)


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the trace.

    Attributes:
        group: Number of its group of documents.
        row: Its question.
        order: In which its documents come.
    """

    group: int
    row: Row
    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a system made of the trace.

    Attributes:
        scores: Score of each answer, from 0 to 100.
        first_token_s: Time to the first token of each request, in seconds.
        exact_share: Share of the requests whose answers equal a plain prefill's.
        computed_share: Share of all prompt tokens that were computed for their request.
        idle_s: What promotions took between requests, in seconds.
    """

    scores: tuple[float, ...]
    first_token_s: tuple[float, ...]
    exact_share: float
    computed_share: float
    idle_s: float


def make_trace(
    rows: Sequence[Row], num_requests: int, num_groups: int, *, shuffle: bool
) -> list[Request]:
    """Draws groups by Zipf's law; each time one is drawn, its next question is asked."""
    rng = Random(0)
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.docs, []).append(row)
    chosen = rng.sample(list(groups.values()), num_groups)
    weights = [1 / (rank + 1) for rank in range(num_groups)]
    drawn = rng.choices(range(num_groups), weights=weights, k=num_requests)
    questions = [iter(group * num_requests) for group in chosen]
    return [_request(number, next(questions[number]), rng, shuffle) for number in drawn]


def _request(group: int, row: Row, rng: Random, shuffle: bool) -> Request:
    order = list(range(len(row.docs)))
    if shuffle:
        rng.shuffle(order)
    return Request(group, row, tuple(order))


def run(model: str, system: System, trace: Sequence[Request]) -> Outcome:
    """Serves the trace, one request at a time."""
    llm = inspected_engine(
        model,
        prompt_modules=dict(system.options),
        kv_cache_memory_bytes=3 << 30,
        max_model_len=4096,
        disable_log_stats=False,
    )
    for group, row in {request.group: request.row for request in trace}.items():
        llm.add_schema(WRITER.schema(row, Group("default", number=group, system=system)))
    served = [_serve(llm, system, request) for request in track(trace, system.name)]
    stats = scheduler_of(llm).module_store.stats
    is_exact = not system.reuse or "exact" in system.attributes
    num_exact = len(trace) if is_exact else stats.num_promoted_requests
    outputs = [output for output, _ in served]
    num_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    num_cached = sum(output.num_cached_tokens for output in outputs)
    return Outcome(
        tuple(_score(request, output) for request, output in zip(trace, outputs, strict=True)),
        tuple(output.metrics.first_token_latency for output in outputs),
        num_exact / len(trace),
        1 - num_cached / num_tokens,
        sum(idle_s for _, idle_s in served),
    )


def _serve(llm: Any, system: System, request: Request) -> tuple[Any, float]:
    """Answers a request, then lets the engine do what it has put off."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=TASKS[request.row.metric].max_tokens)
    group = Group("default", number=request.group, system=system)
    prompt = WRITER.prompt(request.row, group, request.order)
    (output,) = llm.generate(prompt, params, reuse=system.reuse, use_tqdm=False)
    start = time.perf_counter()
    while scheduler_of(llm).has_requests():
        llm.llm_engine.step()
    return output, time.perf_counter() - start


def _score(request: Request, output: Any) -> float:
    return score(request.row.metric, output.outputs[0].text, request.row.answers).score


def table(outcomes: dict[str, Outcome]) -> Table:
    """One line for each system."""
    columns = ("score", "served exactly", "computed", "first token, s: median", "mean", "idle, s")
    report = Table("system", *columns)
    for name, outcome in outcomes.items():
        report.add_row(name, *_cells(outcome))
    return report


def _cells(outcome: Outcome) -> Iterator[str]:
    yield f"{statistics.mean(outcome.scores):.1f}"
    yield f"{outcome.exact_share:.0%}"
    yield f"{outcome.computed_share:.0%}"
    yield f"{statistics.median(outcome.first_token_s):.3f}"
    yield f"{statistics.mean(outcome.first_token_s):.3f}"
    yield f"{outcome.idle_s:.1f}"


def main() -> None:
    """Runs every system in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m", help="folder, or embedded model")
    parser.add_argument("--data", type=Path, required=True, help="rows as for evaluate")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--groups", type=int, default=8, help="groups of documents")
    parser.add_argument("--shuffle", action="store_true", help="another order each time")
    parser.add_argument("--json", type=Path, help="where to write the outcomes")
    args = parser.parse_args()
    model = str(embedded_model(args.model)) if args.model in MODELS else args.model
    rows = read_data(args.data).rows
    trace = make_trace(rows, args.requests, args.groups, shuffle=args.shuffle)
    outcomes = {system.name: in_process(run, model, system, trace) for system in SYSTEMS}
    Console(width=120).print(table(outcomes))
    if args.json is not None:
        plain = {name: asdict(outcome) for name, outcome in outcomes.items()}
        args.json.write_text(json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    main()
