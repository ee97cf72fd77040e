"""What holds for every fleet."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from vllm_promptcache.ranking import Replicas, Summary
from vllm_promptcache.ranking.order import are_free

MARGIN = 4
SCHEMAS = [f"schema-{number}" for number in range(40)]
NAMES = st.lists(st.text("abcdef", min_size=1), unique=True, min_size=1, max_size=20).map(tuple)
MODULES = st.frozensets(st.integers(0, 30), max_size=10)


def key(number: int) -> bytes:
    return bytes([number]) * 32


def place(fleet: Replicas, names: tuple[str, ...]) -> dict[str, str]:
    """Sends a request of each schema, all of which have modules of their own."""
    placed = {}
    for number, schema in enumerate(SCHEMAS):
        tokens = {key(number): 10}
        placed[schema] = names[next(fleet.rank(schema, tokens, names, [0] * len(names)))]
        fleet.expect(placed[schema], tokens, now=0)
    return placed


@given(NAMES, st.data())
def test_every_replica_is_ranked_once_and_none_that_is_gone(
    names: tuple[str, ...], data: st.DataObject
) -> None:
    fleet = Replicas(MARGIN)
    alive = list(names)
    for now in range(data.draw(st.integers(0, 20))):
        name, modules = data.draw(st.sampled_from(names)), data.draw(MODULES)
        what = data.draw(st.sampled_from(["expect", "report", "remove"]))
        if what == "expect":
            fleet.expect(name, map(key, modules), now)
        elif what == "report":
            fleet.report(name, Summary.of((key(number), 10) for number in modules), now)
        elif name in alive:
            fleet.remove(name)
            alive.remove(name)
    loads = data.draw(st.lists(st.integers(0, 30), min_size=len(alive), max_size=len(alive)))
    tokens = {key(number): 10 for number in data.draw(MODULES)}
    assert sorted(fleet.rank("schema", tokens, tuple(alive), loads)) == list(range(len(alive)))


@given(NAMES, st.data())
def test_the_ranking_is_that_of_a_plain_model(names: tuple[str, ...], data: st.DataObject) -> None:
    """Against sets and sorting: who holds what after reports alone, and the order of holders."""
    fleet, held = Replicas(MARGIN), {name: frozenset[int]() for name in names}
    for name in data.draw(st.lists(st.sampled_from(names), max_size=20)):
        held[name] = data.draw(MODULES)
        fleet.report(name, Summary.of((key(number), 10) for number in held[name]), now=0)
    needed = data.draw(MODULES)
    loads = data.draw(st.lists(st.integers(0, 30), min_size=len(names), max_size=len(names)))
    ranked = list(fleet.rank("schema", {key(number): 10 for number in needed}, names, loads))
    limit = 2 * min(loads) + MARGIN
    free = [i for i in range(len(names)) if loads[i] <= limit]
    holders = [i for i in free if held[names[i]] & needed]
    holders.sort(key=lambda i: (-len(held[names[i]] & needed), loads[i]))
    assert ranked[: len(holders)] == holders
    assert set(ranked[: len(free)]) == set(free)
    busy = ranked[len(free) :]
    assert [loads[i] for i in busy] == sorted(loads[i] for i in busy)


@given(NAMES, st.data())
def test_a_replica_that_goes_moves_only_its_schemas(
    names: tuple[str, ...], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(names))
    left = tuple(name for name in names if name != gone)
    fleet = Replicas(MARGIN)
    before = place(fleet, names)
    fleet.remove(gone)
    # The same for one that has seen no request: schemas are weighed, not remembered.
    for after in (place(fleet, left), place(Replicas(MARGIN), left)) if left else ():
        moved = {schema for schema in SCHEMAS if after[schema] != before[schema]}
        assert moved == {schema for schema in SCHEMAS if before[schema] == gone}


@given(NAMES, st.randoms())
def test_the_order_of_names_does_not_place_schemas(names: tuple[str, ...], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(names)
    random.shuffle(shuffled)
    assert place(Replicas(MARGIN), names) == place(Replicas(MARGIN), tuple(shuffled))


@given(st.lists(st.integers(0, 100), min_size=1), st.integers(0, 20))
def test_a_burst_always_finds_a_free_replica(loads: list[int], margin: int) -> None:
    import numpy as np

    assert are_free(np.array(loads, float), margin)[loads.index(min(loads))]


def test_schemas_spread_evenly() -> None:
    names = tuple(f"replica-{number}" for number in range(8))
    fleet = Replicas(MARGIN)
    counts = dict.fromkeys(names, 0)
    for number in range(2000):
        counts[names[next(fleet.rank(f"schema-{number}", {}, names, [0] * 8))]] += 1
    assert all(200 < count < 300 for count in counts.values())


def test_every_process_ranks_alike() -> None:
    """Also where Python's own hashes differ."""
    code = (
        "import json\n"
        "from tests.ranking.test_properties import MARGIN, Replicas, place\n"
        "print(json.dumps(place(Replicas(MARGIN), ('one', 'two', 'three'))))"
    )
    found = []
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        found.append(json.loads(done.stdout))
    assert found[0] == found[1] == place(Replicas(MARGIN), ("one", "two", "three"))
