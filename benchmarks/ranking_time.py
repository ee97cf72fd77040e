"""How long a router takes to choose among replicas, and to read what they report.

    python -m benchmarks.ranking_time

Every tenth schema is held by 40 replicas, the others by one or two, each by most of its modules.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import chain, cycle
from random import Random
from statistics import median
from time import perf_counter

from vllm_promptcache.ranking import Replicas, Summary
from vllm_promptcache.ranking.replicas import EXPECTED_S

NUM_SCHEMAS = 1000
NUM_MODULES = 10
NUM_CALLS = 2000
MARGIN = 4


def keys(schema: int, number: int) -> list[bytes]:
    """Keys of the first modules of a schema, and of the next ones where it has not as many."""
    places = (divmod(index, NUM_MODULES) for index in range(number))
    return [sha256(f"{schema + more}/{index}".encode()).digest() for more, index in places]


def known(rng: Random, names: tuple[str, ...]) -> Replicas:
    """Replicas that hold all schemas."""
    replicas = Replicas(MARGIN)
    for schema in range(NUM_SCHEMAS):
        for name in rng.sample(names, min(len(names), 40 if schema % 10 == 0 else 1 + schema % 2)):
            held = [key for key in keys(schema, NUM_MODULES) if rng.random() < 0.8]
            replicas.expect(name, held, now=0)
    return replicas


def measure(call: Callable[[], object], number: int = NUM_CALLS) -> str:
    """Times a call: the fastest one, which nothing else disturbed, and the median."""
    found = []
    for _ in range(number):
        since = perf_counter()
        call()
        found.append(1e6 * (perf_counter() - since))
    return f"{min(found):7.0f} us, median {median(found):7.0f} us"


def choices(replicas: Replicas, names: tuple[str, ...], rng: Random) -> Iterator[tuple[str, str]]:
    """What is timed of choices, and the times."""
    loads = [float(rng.randrange(5)) for _ in names]
    for number in (5, 20, 100):
        for first, what in ((0, "held"), (NUM_SCHEMAS + 100, "cold")):
            schemas = range(first, first + 100)
            asked = cycle([(f"schema-{s}", dict.fromkeys(keys(s, number), 100)) for s in schemas])

            def choose(asked: Iterator[tuple[str, dict[bytes, int]]] = asked) -> int:
                return next(replicas.rank(*next(asked), names, loads))

            yield f"a choice, {number} modules, {what}", measure(choose)


def reports(replicas: Replicas, name: str) -> Iterator[tuple[str, str]]:
    """What is timed of reports, and the times."""
    for number in (1000, 8000):
        modules = [(key, 100) for key in keys(2 * NUM_SCHEMAS, number + number // 100)]
        summaries = cycle((Summary.of(modules[:number]), Summary.of(modules[-number:])))

        def report(summaries: Iterator[Summary] = summaries) -> None:
            replicas.report(name, next(summaries), now=EXPECTED_S / 2)

        yield f"a report, {number} modules, 1 % of them new", measure(report, 100)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=256)
    args = parser.parse_args()
    rng = Random(0)
    names = tuple(f"replica-{number}" for number in range(args.replicas))
    replicas = known(rng, names)
    for what, found in chain(choices(replicas, names, rng), reports(replicas, names[0])):
        print(f"{what:42}{found}")


if __name__ == "__main__":
    main()
