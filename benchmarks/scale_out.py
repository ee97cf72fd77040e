"""Which replica serves a request: the ranking beside other policies, 4 to 256 replicas, simulated.

    python -m benchmarks.scale_out --results results.json --plot scale_out.png

The ranking is the real one; replicas and requests are simulated, see `scale_out_fleet` and
`scale_out_traffic`. Results that are there already are shown and not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.scale_out_fleet import NUM_ROUTERS, Fleet, Replica
from benchmarks.scale_out_policies import (
    Affinity,
    ConsistentHash,
    Policy,
    PrefixAware,
    PrefixTree,
    RandomChoice,
    TwoChoices,
)
from benchmarks.scale_out_traffic import Traffic

# Before this the first encodes, which no policy can save, are most of the work.
MEASURED_FROM_S = 100.0
# A replica that was up for less says little of its share of the load.
MIN_UP_S = 60.0
LOAD, LIGHT_LOAD = 0.6, 0.15
SIZES = (4, 16, 64, 256)
SIZE = 64
KINDS = ("hot", "bursts", "churn")
MARGINS = (2, 4, 8)
MARGIN = 4


@dataclass(frozen=True, slots=True)
class Run:
    """What is simulated.

    Attributes:
        policy: Who chooses replicas.
        num_replicas: Replicas at the beginning.
        load: Share of their time that the requests take if all modules are resident.
        kind: `steady`, what is special about the traffic (see `Traffic.make`), or `churn`: replicas
            die after 20 minutes on average, and others come in their place.
    """

    policy: str
    num_replicas: int
    load: float
    kind: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out for the requests that arrived after the first 100 s.

    Attributes:
        run: What was simulated.
        num_requests: Requests.
        hit_rate: Modules that were resident when their request was taken up, as a share of all.
        token_hit_rate: The same in tokens.
        wait_s: p50 and p95 of the time until a replica takes a request up.
        first_token_s: p50 and p95 of the time to the first token.
        busy: Mean share of their time that replicas computed; above 1 if work was left over at the
            end.
        imbalance: The largest of these shares over the mean.
        choice_us: p50 and p95 of the time of a choice, on the machine that simulates.
    """

    run: Run
    num_requests: int
    hit_rate: float
    token_hit_rate: float
    wait_s: tuple[float, float]
    first_token_s: tuple[float, float]
    busy: float
    imbalance: float
    choice_us: tuple[float, float]


def prefix_aware() -> list[Policy]:
    """Routers that share a tree."""
    tree = PrefixTree()
    return [PrefixAware(tree, seed) for seed in range(NUM_ROUTERS)]


def affinity(margin: float) -> list[Policy]:
    """Routers that know of each other by the replicas' reports only."""
    return [Affinity(margin) for _ in range(NUM_ROUTERS)]


# The policies of all routers.
POLICIES: dict[str, Callable[[], list[Policy]]] = {
    "affinity": partial(affinity, MARGIN),
    "prefix-aware": prefix_aware,
    "consistent hashing": lambda: [ConsistentHash() for _ in range(NUM_ROUTERS)],
    "two choices": lambda: [TwoChoices(seed) for seed in range(NUM_ROUTERS)],
    "random": lambda: [RandomChoice(seed) for seed in range(NUM_ROUTERS)],
}
# `affinity` above has the margin that is left out here.
OTHER_MARGINS: dict[str, Callable[[], list[Policy]]] = {
    f"affinity, margin {margin}": partial(affinity, margin)
    for margin in MARGINS
    if margin != MARGIN
}


def runs() -> list[Run]:
    """All runs, those of the same traffic one behind the other."""
    found = [Run(policy, size, LOAD, "steady") for size in SIZES for policy in POLICIES]
    found += [Run(policy, SIZE, LIGHT_LOAD, "steady") for policy in POLICIES]
    found += [Run(policy, SIZE, LOAD, kind) for kind in KINDS for policy in POLICIES]
    kinds = ("steady", "bursts")
    return found + [Run(policy, SIZE, LOAD, kind) for kind in kinds for policy in OTHER_MARGINS]


def measure(known: list[Outcome], seconds: float) -> Iterator[Outcome]:
    """Simulates what is not known."""
    made = {outcome.run for outcome in known}
    last: tuple[object, Traffic] | None = None
    for run in track([run for run in runs() if run not in made], console=Console(stderr=True)):
        wanted = (run.num_replicas, run.load, run.kind)
        if last is None or last[0] != wanted:
            last = wanted, Traffic.make(0, *wanted[:2], seconds, run.kind)
        yield simulate(run, last[1])


def simulate(run: Run, traffic: Traffic) -> Outcome:
    """Runs the traffic through a fleet."""
    fleet = Fleet(run.num_replicas, (POLICIES | OTHER_MARGINS)[run.policy]())
    fleet.run(traffic.requests, has_churn=run.kind == "churn")
    served = [one for one in fleet.served if one.request.arrival >= MEASURED_FROM_S]
    shares = busy_shares(fleet.replicas, traffic.requests[-1].arrival)
    busy = float(np.mean(shares))
    return Outcome(
        run=run,
        num_requests=len(served),
        hit_rate=sum(one.num_hits for one in served) / sum(len(o.request.tokens) for o in served),
        token_hit_rate=sum(one.num_hit_tokens for one in served)
        / sum(one.request.num_tokens for one in served),
        wait_s=percentiles([one.started - one.request.arrival for one in served]),
        first_token_s=percentiles([one.first_token - one.request.arrival for one in served]),
        busy=busy,
        imbalance=max(shares) / busy,
        choice_us=percentiles([1e6 * seconds for seconds in fleet.choices_s]),
    )


def busy_shares(replicas: list[Replica], end: float) -> list[float]:
    """Share of its time that each replica computed, from the measurement's beginning on.

    Work left over at the `end`, when no more requests come, counts as if it was done before.
    """
    found = []
    for replica in replicas:
        since = max(replica.since, MEASURED_FROM_S)
        up_s = (end if replica.until is None else replica.until) - since
        if up_s >= MIN_UP_S:
            busy_s = sum(max(0.0, until - max(start, since)) for start, until in replica.busy)
            found.append(busy_s / up_s)
    return found


def percentiles(values: list[float]) -> tuple[float, float]:
    """p50 and p95."""
    half, most = np.percentile(values, [50, 95])
    return float(half), float(most)


def show(outcomes: list[Outcome]) -> None:
    """Prints the table in Markdown."""
    print(
        "| replicas | traffic | policy | module hits (in tokens) | wait, s | first token, s", end=""
    )
    print(" | busy | imbalance | choice, us |\n|---|---|---|---|---|---|---|---|---|")
    for outcome in outcomes:
        run = outcome.run
        cells = (
            run.num_replicas,
            f"{run.kind}, {run.load:.0%}",
            run.policy,
            f"{outcome.hit_rate:.1%} ({outcome.token_hit_rate:.1%})",
            "{:.2f} / {:.2f}".format(*outcome.wait_s),
            "{:.2f} / {:.2f}".format(*outcome.first_token_s),
            f"{outcome.busy:.0%}",
            f"{outcome.imbalance:.2f}",
            "{:.0f} / {:.0f}".format(*outcome.choice_us),
        )
        print(f"| {' | '.join(map(str, cells))} |")


def plot(outcomes: list[Outcome], path: Path) -> None:
    """Draws hits, first token and imbalance over the number of replicas."""
    from matplotlib import pyplot

    panels: dict[str, Callable[[Outcome], float]] = {
        "module tokens that were resident, %": lambda outcome: 100 * outcome.token_hit_rate,
        "time to the first token, p95, s": lambda outcome: outcome.first_token_s[1],
        "busiest replica over the mean": lambda outcome: outcome.imbalance,
    }
    figure, all_axes = pyplot.subplots(1, len(panels), figsize=(12, 3.8))
    for axes, (label, value) in zip(all_axes, panels.items(), strict=True):
        for policy in POLICIES:
            line = [o for o in outcomes if (o.run.policy, o.run.kind) == (policy, "steady")]
            line = [outcome for outcome in line if outcome.run.load == LOAD]
            sizes = [outcome.run.num_replicas for outcome in line]
            axes.plot(sizes, [value(outcome) for outcome in line], marker="o", label=policy)
        axes.set_xscale("log", base=2)
        axes.set_xticks(SIZES, SIZES)
        axes.set(xlabel="replicas", ylabel=label)
        axes.grid(alpha=0.3)
    for axes in all_axes[1:]:
        axes.set_yscale("log")
    all_axes[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300, help="how long requests come")
    parser.add_argument("--results", type=Path, required=True, help="a JSON file to write")
    parser.add_argument("--plot", type=Path, help="a picture to write")
    args = parser.parse_args()
    outcomes: list[Outcome] = []
    if args.results.exists():
        outcomes = msgspec.json.decode(args.results.read_bytes(), type=list[Outcome])
    for outcome in measure(list(outcomes), args.seconds):
        outcomes.append(outcome)
        args.results.write_bytes(msgspec.json.format(msgspec.json.encode(outcomes)) + b"\n")
    show(outcomes)
    if args.plot:
        plot(outcomes, args.plot)


if __name__ == "__main__":
    main()
