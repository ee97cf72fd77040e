"""The simulated fleet in which policies are compared."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks import scale_out_fleet
from benchmarks.scale_out import POLICIES
from benchmarks.scale_out_fleet import Fleet, Replica, Served
from benchmarks.scale_out_policies import PrefixAware, PrefixTree, TwoChoices
from benchmarks.scale_out_traffic import ENCODE_S_PER_TOKEN, WARM_S, Request, Traffic

NAMES = ("a", "b", "c")


def request(*modules: str, num_tokens: int = 100) -> Request:
    tokens = {module.encode().ljust(32): num_tokens for module in modules}
    return Request(0.0, "schema", tokens, sum(tokens.values()))


def test_a_replica_encodes_what_is_not_resident(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_out_fleet, "KV_CACHE_TOKENS", 300)
    replica = Replica("a", since=0.0)
    cold = WARM_S + 200 * ENCODE_S_PER_TOKEN
    one = Served(request("m", "n"), router=0)
    assert replica.serve(one, now=5.0) == pytest.approx(5.0 + cold)
    assert (one.num_hits, one.num_hit_tokens, one.started) == (0, 0, 5.0)
    again = Served(request("m", "x"), router=0)
    assert replica.serve(again, now=9.0) == pytest.approx(9.0 + WARM_S + 100 * ENCODE_S_PER_TOKEN)
    assert (again.num_hits, again.num_hit_tokens) == (1, 100)
    # There is room for three, and "n" was used longest ago.
    last = Served(request("y", "m", "x"), router=0)
    replica.serve(last, now=10.0)
    assert last.num_hits == 2
    gone = Served(request("n"), router=0)
    replica.serve(gone, now=11.0)
    assert gone.num_hits == 0


def test_a_summary_is_made_where_something_has_changed() -> None:
    replica = Replica("a", since=0.0)
    assert replica.summary() is None
    replica.serve(Served(request("m"), router=0), now=0.0)
    summary = replica.summary()
    assert summary is not None
    assert summary.num_tokens == 100
    replica.serve(Served(request("m"), router=0), now=1.0)
    assert replica.summary() is None


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_is_answered_once_also_where_replicas_die(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale_out_fleet, "LIFETIME_S", 10.0)
    monkeypatch.setattr(scale_out_fleet, "START_S", 3.0)
    traffic = Traffic.make(0, num_replicas=4, load=0.5, seconds=15, kind="steady")
    fleet = Fleet(4, POLICIES[policy]())
    fleet.run(traffic.requests, has_churn=True)
    assert len(fleet.replicas) > 6
    answered = Counter(id(one.request) for one in fleet.served)
    assert answered == Counter(map(id, traffic.requests))
    for one in fleet.served:
        assert one.request.arrival <= one.started <= one.first_token - WARM_S + 1e-9


def test_traffic_is_that_of_the_seed_and_grows_with_the_fleet() -> None:
    one, two = (Traffic.make(0, 4, 0.5, 20, "steady") for _ in range(2))
    assert one == two
    number = len(one.requests)
    assert len(Traffic.make(0, 8, 0.5, 20, "steady").requests) in (2 * number, 2 * number + 1)
    hot = Counter(found.schema for found in Traffic.make(0, 4, 0.5, 20, "hot").requests)
    assert hot.most_common(1)[0][1] == pytest.approx(0.3 * number, rel=0.3)
    assert len(Traffic.make(0, 4, 0.5, 60, "bursts").requests) > 3 * number + 20


def test_a_prefix_is_followed_while_queues_are_alike() -> None:
    policy = PrefixAware(PrefixTree(), seed=0)
    first = policy.choose(request("m", "n"), NAMES, [0, 0, 0], now=0.0)
    loads = [0.0, 0.0, 0.0]
    loads[first] = 10.0
    assert policy.choose(request("m", "x"), NAMES, loads, now=0.0) == first
    assert policy.choose(request("n", "m"), NAMES, loads, now=0.0) != first
    loads[first] = 11.0
    assert policy.choose(request("m", "x"), NAMES, loads, now=0.0) != first


def test_two_choices_take_the_less_loaded_one() -> None:
    policy = TwoChoices(seed=0)
    chosen = Counter(policy.choose(request("m"), NAMES, [9, 0, 5], now=0.0) for _ in range(60))
    assert set(chosen) == {1, 2}
