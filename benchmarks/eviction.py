"""What eviction costs: module tokens encoded again, by policy and size of the KV cache.

    python -m benchmarks.eviction --plot benchmarks/eviction.png

Requests import modules by Zipf's law. They run on vLLM's own block pool and on the project's own
store and eviction, without a model: an encode only takes blocks. The first encode of a module,
which no policy can save, does not count.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from vllm.v1.core.block_pool import BlockPool

from vllm_promptcache.compat.block_pool import before_allocation
from vllm_promptcache.store import Eviction, GreedyDual, ModuleStore

BLOCK_SIZE = 32
NUM_MODULES = 400
NUM_REQUESTS = 2000
NUM_IMPORTED = 4
CAPACITIES = (0.10, 0.25, 0.50)
POLICIES = ("lru", "value")


@dataclass(frozen=True, slots=True)
class Trace:
    """Which modules requests import.

    Attributes:
        num_tokens: Tokens of each module, `[NUM_MODULES]`: log-normal, median 148.
        requests: Modules of each request, `[NUM_REQUESTS, NUM_IMPORTED]`.
    """

    num_tokens: np.ndarray
    requests: np.ndarray

    @classmethod
    def make(cls, seed: int, exponent: float) -> Trace:
        """Makes the trace of a seed."""
        rng = np.random.default_rng(seed)
        num_tokens = np.clip(rng.lognormal(5.0, 0.8, NUM_MODULES), 16, 2000).astype(int)
        weights = rng.permutation(1 / np.arange(1, NUM_MODULES + 1) ** exponent)
        draw = [
            rng.choice(NUM_MODULES, NUM_IMPORTED, replace=False, p=weights / weights.sum())
            for _ in range(NUM_REQUESTS)
        ]
        return cls(num_tokens, np.array(draw))

    @property
    def num_blocks(self) -> np.ndarray:
        """Blocks of each module, `[NUM_MODULES]`."""
        return -(-self.num_tokens // BLOCK_SIZE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy did with a trace.

    Attributes:
        encoded_again: Tokens that were encoded again, as a share of all imported tokens.
        hit_rate: Imports that found their module, as a share of all.
    """

    encoded_again: float
    hit_rate: float


class Cache:
    """A block pool that holds modules only."""

    def __init__(self, policy: str, num_blocks: int) -> None:
        self._pool = BlockPool(num_blocks + 1, enable_caching=True, hash_block_size=BLOCK_SIZE)
        self._store = ModuleStore(self._pool)
        self._eviction = Eviction(self._store, GreedyDual() if policy == "value" else None)
        before_allocation(self._pool, self._eviction.make_room)

    def request(self, modules: dict[bytes, tuple[int, int]]) -> list[bytes]:
        """Runs a request that imports modules of so many tokens and blocks; returns the misses."""
        missing = [key for key in modules if not self._store.pin("request", key)]
        for key in missing:
            num_tokens, num_blocks = modules[key]
            blocks = self._pool.get_new_blocks(num_blocks)
            self._store.commit(key, blocks, num_tokens)
            self._store.pin("request", key)
            self._pool.free_blocks(reversed(blocks))
        for key in modules:
            self._eviction.use(key)
        self._store.unpin("request")
        return missing


def run(policy: str, capacity: float, trace: Trace) -> Outcome:
    """Runs a trace on a cache for `capacity` of all modules."""
    cache = Cache(policy, int(trace.num_blocks.sum() * capacity))
    sizes = list(zip(trace.num_tokens.tolist(), trace.num_blocks.tolist(), strict=True))
    seen: set[bytes] = set()
    num_again = num_hits = num_tokens = 0
    for request in trace.requests.tolist():
        modules = {number.to_bytes(32, "big"): sizes[number] for number in request}
        missing = cache.request(modules)
        num_again += sum(modules[key][0] for key in missing if key in seen)
        num_hits += len(modules) - len(missing)
        num_tokens += sum(tokens for tokens, _ in modules.values())
        seen.update(modules)
    return Outcome(num_again / num_tokens, num_hits / trace.requests.size)


def measure(seeds: int, exponent: float) -> Iterator[tuple[float, str, list[Outcome]]]:
    """Capacity, policy and the outcome of each seed."""
    traces = [Trace.make(seed, exponent) for seed in range(seeds)]
    runs = [(capacity, policy) for capacity in CAPACITIES for policy in POLICIES]
    for capacity, policy in track(runs, "Running traces", console=Console(stderr=True)):
        yield capacity, policy, [run(policy, capacity, trace) for trace in traces]


def show(results: dict[tuple[float, str], list[Outcome]]) -> None:
    """Prints the table."""
    table = Table("capacity", "policy", "encoded again", "by seed", "saved", "hit rate")
    for (capacity, policy), outcomes in results.items():
        again, base = mean_again(outcomes), mean_again(results[capacity, "lru"])
        by_seed = " ".join(f"{outcome.encoded_again:.1%}" for outcome in outcomes)
        hit_rate = np.mean([outcome.hit_rate for outcome in outcomes])
        saved = f"{1 - again / base:.1%}" if policy != "lru" else ""
        table.add_row(f"{capacity:.0%}", policy, f"{again:.1%}", by_seed, saved, f"{hit_rate:.1%}")
    Console(width=100).print(table)


def mean_again(outcomes: list[Outcome]) -> float:
    """Share of tokens that were encoded again, over all seeds."""
    return float(np.mean([outcome.encoded_again for outcome in outcomes]))


def plot(results: dict[tuple[float, str], list[Outcome]], path: Path) -> None:
    """Draws the share of tokens encoded again over the capacity, with all seeds."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for policy in POLICIES:
        means = [100 * mean_again(results[capacity, policy]) for capacity in CAPACITIES]
        (line,) = axes.plot([100 * c for c in CAPACITIES], means, marker="o", label=policy)
        for capacity in CAPACITIES:
            seeds = [100 * outcome.encoded_again for outcome in results[capacity, policy]]
            axes.scatter([100 * capacity] * len(seeds), seeds, s=8, color=line.get_color())
    axes.set(xlabel="KV cache, % of all modules", ylabel="module tokens encoded again, %")
    axes.set_ylim(bottom=0)
    axes.legend(title="--prompt-modules-eviction")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--exponent", type=float, default=1.0, help="of Zipf's law")
    parser.add_argument("--plot", type=Path, help="a picture to write")
    args = parser.parse_args()
    results = {(c, policy): found for c, policy, found in measure(args.seeds, args.exponent)}
    show(results)
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
