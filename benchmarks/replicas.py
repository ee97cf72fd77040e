"""Two real replicas: requests where their modules are, beside Serve's power of two choices.

The same trace is sent to both, each in a cluster of its own: schemas by Zipf's law, a few clients
with one request at a time. A replica's KV cache holds the modules of a little more than half of the
schemas.

    python -m benchmarks.replicas [--model M] [--schemas 20] [--requests 400] [--clients 4]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.engines import engine_defaults
from benchmarks.workloads import words
from vllm_promptcache.models import MODELS, embedded_model

NUM_MODULES = 3
NUM_WORDS = 120
NUM_QUESTION_WORDS = 12
MAX_TOKENS = 4
# One core each: threads that wait for each other are slower than one alone.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


@dataclass(frozen=True, slots=True)
class Trace:
    """Schemas, and the requests for them.

    Attributes:
        schemas: In PML, by name.
        asked: The schema of each prompt.
        prompts: In the order in which they are sent.
    """

    schemas: dict[str, str]
    asked: list[str]
    prompts: list[str]

    @classmethod
    def random(cls, num_schemas: int, num_requests: int) -> Trace:
        """Popular schemas come more often (Zipf, exponent 1); modules in any order."""
        rng = Random(0)
        names = [f"s{i}" for i in range(num_schemas)]
        weights = [1 / (rank + 1) for rank in range(num_schemas)]
        asked = rng.choices(names, weights=weights, k=num_requests)
        schemas = {name: _schema(rng, name) for name in names}
        return cls(schemas, asked, [_prompt(rng, name) for name in asked])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the clients saw.

    Attributes:
        first_token_s: Of each request, in seconds.
        hit_share: Tokens of modules that were resident, of all: what a request read, of the most
            that one of the same schema did.
        shares: Requests at each replica, of all.
    """

    first_token_s: list[float]
    hit_share: float
    shares: list[float]


def _schema(rng: Random, name: str) -> str:
    modules = "".join(
        f"<module name='m{i}'>{words(rng, NUM_WORDS)}.</module>" for i in range(NUM_MODULES)
    )
    return f"<schema name='{name}'>{modules}</schema>"


def _prompt(rng: Random, name: str) -> str:
    order = rng.sample(range(NUM_MODULES), NUM_MODULES)
    imports = "".join(f"<m{i}/>" for i in order)
    return f"<prompt schema='{name}'>{imports} {words(rng, NUM_QUESTION_WORDS)}</prompt>"


@contextmanager
def running_app(model: str, num_kv_bytes: int, *, by_modules: bool) -> Iterator[str]:
    """Serves the model from two replicas; yields the address.

    Args:
        model: Its folder.
        by_modules: Whether requests go where their modules are; else to the less busy of two.
        num_kv_bytes: Of a replica's KV cache.
    """
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions, RequestRouterConfig

    from vllm_promptcache.distributed.app import application
    from vllm_promptcache.distributed.app_options import AppOptions

    engine = ["--enforce-eager", f"--dtype={engine_defaults()['dtype']}", "--max-model-len=2048"]
    engine += [f"--kv-cache-memory-bytes={num_kv_bytes}", "--served-model-name=model"]
    engine += ["--prompt-modules-repair=none", "--prompt-modules-promote-after=0"]
    options = AppOptions.parse([model, "--replicas=2", *engine])
    ray.init(num_cpus=8, include_dashboard=False, logging_level="ERROR")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        serve.start(http_options=HTTPOptions(port=port))
        routing = None if by_modules else RequestRouterConfig()
        serve.run(application(options, routing))
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def measure(url: str, trace: Trace, num_clients: int) -> Outcome:
    """Writes the schemas and sends the trace."""
    replicas = list[str]()
    with httpx.Client(base_url=url, timeout=600) as client:
        for text in trace.schemas.values():
            client.post("/v1/prompt_schemas", json={"schema": text}).raise_for_status()

        def ask(prompt: str) -> tuple[float, int]:
            body = {"model": "model", "prompt": prompt, "max_tokens": MAX_TOKENS, "stream": True}
            body |= {"stream_options": {"include_usage": True}, "ignore_eos": True}
            start, first = time.perf_counter(), 0.0
            with client.stream("POST", "/v1/completions", json=body) as answer:
                answer.raise_for_status()
                replicas.append(answer.headers["x-replica"])
                for line in answer.iter_lines():
                    if line.startswith("data: {"):
                        first = first or time.perf_counter() - start
                        last = line
            usage = json.loads(last.removeprefix("data: "))["usage"]
            return first, usage["prompt_tokens_details"]["cached_tokens"]

        with ThreadPoolExecutor(num_clients) as pool:
            found = list(pool.map(ask, trace.prompts))
    first_s, cached = zip(*found, strict=True)
    most = dict[str, int]()
    for schema, number in zip(trace.asked, cached, strict=True):
        most[schema] = max(number, most.get(schema, 0))
    hit_share = sum(cached) / sum(most[schema] for schema in trace.asked)
    shares = [number / len(replicas) for number in Counter(replicas).values()]
    return Outcome(list(first_s), hit_share, sorted(shares))


def report(outcomes: dict[str, Outcome]) -> Table:
    """A line for each way to route."""
    table = Table("requests go", "module hits", "first token p50, s", "p95, s", "busier replica")
    for name, found in outcomes.items():
        median, late = np.percentile(found.first_token_s, [50, 95])
        share, busier = f"{found.hit_share:.1%}", f"{found.shares[-1]:.0%}"
        table.add_row(name, share, f"{median:.2f}", f"{late:.2f}", busier)
    return table


def main() -> None:
    """Measures both ways, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=next(iter(MODELS)), choices=MODELS)
    parser.add_argument("--schemas", type=int, default=20)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--kv-cache-mib", type=int, default=256)
    args = parser.parse_args()
    os.environ.update(_ENVIRONMENT)
    trace, model = Trace.random(args.schemas, args.requests), str(embedded_model(args.model))
    outcomes = {}
    for name in ("to their modules", "to the less busy of two"):
        by_modules = name == "to their modules"
        with running_app(model, args.kv_cache_mib << 20, by_modules=by_modules) as url:
            outcomes[name] = measure(url, trace, args.clients)
    Console().print(report(outcomes))


if __name__ == "__main__":
    main()
