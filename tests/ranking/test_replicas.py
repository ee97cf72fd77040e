"""What a router knows of the replicas, and how it ranks them."""

from __future__ import annotations

from hashlib import sha256

import pytest

from vllm_promptcache.ranking import Replicas, Summary, holders
from vllm_promptcache.ranking.replicas import EXPECTED_S, MAX_NUM_EXPECTED

MARGIN = 4
NAMES = ("a", "b", "c")
IDLE = (0, 0, 0)


def key(name: str) -> bytes:
    return sha256(name.encode()).digest()


def tokens(*names: str, num_tokens: int = 10) -> dict[bytes, int]:
    return {key(name): num_tokens for name in names}


def summary(*names: str, num_tokens: int = 10) -> Summary:
    return Summary.of((key(name), num_tokens) for name in names)


def first(
    fleet: Replicas,
    needed: dict[bytes, int],
    loads: tuple[float, ...] = IDLE,
    names: tuple[str, ...] = NAMES,
    schema: str = "schema",
) -> str:
    return names[next(fleet.rank(schema, needed, names, loads))]


@pytest.fixture
def fleet() -> Replicas:
    return Replicas(MARGIN)


def test_nothing_to_choose_from_ranks_nothing(fleet: Replicas) -> None:
    assert list(fleet.rank("schema", tokens("m"), (), ())) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_request_goes_where_its_modules_are_reported(fleet: Replicas, name: str) -> None:
    fleet.report(name, summary("m"), now=0)
    assert first(fleet, tokens("m", "other")) == name


@pytest.mark.parametrize("name", NAMES)
def test_a_request_follows_the_one_before_it_at_once(fleet: Replicas, name: str) -> None:
    fleet.expect(name, tokens("m"), now=0)
    assert first(fleet, tokens("m")) == name


def test_most_tokens_come_first_and_less_load_among_equals(fleet: Replicas) -> None:
    fleet.report("a", summary("m"), now=0)
    fleet.report("b", summary("m", "n"), now=0)
    fleet.report("c", summary("m", "n"), now=0)
    assert list(fleet.rank("schema", tokens("m", "n"), NAMES, (0, 2, 1))) == [2, 1, 0]


def test_load_does_not_move_a_request_within_the_margin(fleet: Replicas) -> None:
    fleet.report("b", summary("m"), now=0)
    assert first(fleet, tokens("m"), (0, MARGIN, 0)) == "b"


def test_a_burst_spills_to_a_replica_that_holds_the_modules_then(fleet: Replicas) -> None:
    fleet.report("b", summary("m"), now=0)
    spilt = first(fleet, tokens("m"), (0, MARGIN + 1, 0))
    assert spilt != "b"
    fleet.expect(spilt, tokens("m"), now=0)
    # Both share what comes then, and the third one stays without.
    loads = {"a": 0.0, "b": 3.0, "c": 0.0} | {spilt: 1.0}
    assert first(fleet, tokens("m"), tuple(loads.values())) == spilt
    loads[spilt] = 4.0
    assert first(fleet, tokens("m"), tuple(loads.values())) == "b"


def test_all_routers_spill_to_the_same_replica() -> None:
    for number in range(20):
        chosen = set()
        for _ in range(3):
            fleet = Replicas(MARGIN)
            fleet.report("b", summary("m"), now=0)
            loads = (0, MARGIN + 1, 0)
            chosen.add(first(fleet, tokens("m"), loads, schema=f"schema-{number}"))
        assert len(chosen) == 1


def test_where_all_are_busy_a_spill_takes_twice_the_load(fleet: Replicas) -> None:
    fleet.report("b", summary("m"), now=0)
    assert first(fleet, tokens("m"), (9, 2 * 9 + MARGIN, 9)) == "b"
    assert first(fleet, tokens("m"), (9, 2 * 9 + MARGIN + 1, 9)) != "b"


def test_busy_replicas_come_last_by_load(fleet: Replicas) -> None:
    fleet.report("a", summary("m"), now=0)
    fleet.report("b", summary("m"), now=0)
    assert list(fleet.rank("schema", tokens("m"), NAMES, (50, 40, 0))) == [2, 1, 0]


def test_of_two_replicas_a_cold_schema_takes_the_emptier_one(fleet: Replicas) -> None:
    ranked = [NAMES[index] for index in fleet.rank("schema", tokens("m"), NAMES, IDLE)]
    fleet.report(ranked[0], summary("x", num_tokens=20), now=0)
    fleet.report(ranked[1], summary("y", num_tokens=10), now=0)
    found = [NAMES[index] for index in fleet.rank("schema", tokens("m"), NAMES, IDLE)]
    # The third one is emptier still, and no candidate.
    assert found == [ranked[1], ranked[0], ranked[2]]


def test_what_is_no_longer_reported_is_not_held(fleet: Replicas) -> None:
    for name in NAMES:
        fleet.report(name, summary("m"), now=0)
    fleet.report("a", summary(), now=1)
    fleet.report("c", summary("n"), now=1)
    assert first(fleet, tokens("m"), (0, MARGIN, 0)) == "b"


def test_what_is_expected_outlives_summaries_of_the_time_before(fleet: Replicas) -> None:
    for name in NAMES:
        fleet.expect(name, tokens(name), now=0)
        fleet.report(name, summary("other"), now=EXPECTED_S)
        fleet.report(name, summary("another"), now=EXPECTED_S)
    assert [first(fleet, tokens(name)) for name in NAMES] == list(NAMES)


def test_what_is_evicted_before_a_request_comes_to_its_turn_is_expected(fleet: Replicas) -> None:
    for name in NAMES:
        fleet.report(name, summary(name), now=0)
        fleet.expect(name, tokens(name), now=1)
        fleet.report(name, summary(), now=2)
    assert [first(fleet, tokens(name)) for name in NAMES] == list(NAMES)


@pytest.mark.parametrize("later", [(), ("other",)])
def test_what_was_expected_and_never_reported_is_not_held(
    fleet: Replicas, later: tuple[str, ...]
) -> None:
    cold = first(fleet, tokens("m"))
    other = next(name for name in NAMES if name != cold)
    fleet.expect(other, tokens("m"), now=0)
    fleet.report(other, summary(*later), now=EXPECTED_S + 1)
    assert first(fleet, tokens("m")) == cold


def test_what_was_expected_and_then_reported_stays(fleet: Replicas) -> None:
    for name in NAMES:
        fleet.expect(name, tokens(name), now=0)
        fleet.report(name, summary(name), now=5)
        fleet.report(name, summary(name), now=EXPECTED_S + 1)
    assert [first(fleet, tokens(name)) for name in NAMES] == list(NAMES)


def test_a_replica_that_is_gone_holds_nothing_nor_does_the_next_one(fleet: Replicas) -> None:
    fleet.report("a", summary("m"), now=0)
    fleet.expect("a", tokens("n"), now=0)
    fleet.remove("a")
    fleet.report("c", summary("m"), now=0)
    # It takes the place of the one that is gone.
    assert first(fleet, tokens("m", "n"), (0, 0, MARGIN), ("d", "b", "c")) == "c"


def test_a_replica_that_is_gone_may_come_back(fleet: Replicas) -> None:
    assert first(fleet, tokens("m")) in NAMES
    fleet.remove("a")
    fleet.report("d", summary("m"), now=0)
    fleet.report("c", summary("m"), now=0)
    assert first(fleet, tokens("m"), (0, 0, MARGIN)) == "c"


def test_a_new_replica_shares_its_place_with_none(fleet: Replicas) -> None:
    assert first(fleet, tokens("m")) in NAMES
    fleet.remove("a")
    fleet.report("d", summary("m"), now=0)
    assert first(fleet, tokens("m"), (MARGIN, 0, 0), ("d", "b", "c")) == "d"


def test_a_replica_may_go_that_was_never_there(fleet: Replicas) -> None:
    fleet.remove("a")
    assert first(fleet, tokens("m")) in NAMES


def test_replicas_are_told_apart_however_many_there_are(fleet: Replicas) -> None:
    names = tuple(f"replica-{number}" for number in range(300))
    for name in names:
        fleet.report(name, summary(name), now=0)
    assert all(first(fleet, tokens(name), (0,) * 300, names) == name for name in names)


def test_memory_is_bounded(fleet: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "MAX_NUM_MODULES", 3)
    for number in range(2 * MAX_NUM_EXPECTED):
        fleet.expect("a", tokens(f"m{number}"), now=0)
    assert len(fleet._holders) == 3
    assert len(fleet._replicas["a"].expected) == MAX_NUM_EXPECTED


def test_places_of_replicas_that_are_gone_are_used_again(fleet: Replicas) -> None:
    for number in range(100):
        fleet.expect(f"replica-{number}", tokens("m"), now=0)
        fleet.remove(f"replica-{number}")
    assert len(fleet._digests) == 8


def test_what_has_been_forgotten_may_leave(
    fleet: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holders, "MAX_NUM_MODULES", 1)
    fleet.report("a", summary("m", "n"), now=0)
    fleet.report("a", summary(), now=1)
    assert len(fleet._holders) == 0


def test_a_new_replica_in_the_place_of_one_that_is_gone_is_empty(fleet: Replicas) -> None:
    ranked = [NAMES[index] for index in fleet.rank("schema", tokens("m"), NAMES, IDLE)]
    fleet = Replicas(MARGIN)
    fleet.report("gone", summary("x", num_tokens=100), now=0)
    fleet.remove("gone")
    # Had the first one the tokens of the one that is gone, the second one would be preferred.
    assert first(fleet, tokens("m"), (0, 0), (ranked[0], ranked[1])) == ranked[0]
