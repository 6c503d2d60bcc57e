"""Priorities, localities and zones."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshsdk.balancing import ClusterPool, ClusterView
from meshsdk.balancing.health import Availability, loads, locality_weight, zone_shares
from meshsdk.errors import NoHealthyUpstream
from meshsdk.model import (
    Assignment,
    Balancing,
    Cluster,
    Endpoint,
    Health,
    LbConfig,
    Locality,
    LocalityEndpoints,
    ZoneAware,
)

WELL, ILL, WEAK, LEAVING = Health.HEALTHY, Health.UNHEALTHY, Health.DEGRADED, Health.DRAINING


def zone(name: str) -> Locality:
    return Locality("r", name)


def group(name: str, *healths: Health, weight: int = 1, priority: int = 0) -> LocalityEndpoints:
    number = int.from_bytes(name.encode(), "big") % 200
    hosts = tuple(
        Endpoint(f"10.0.{number}.{priority}", 1 + i, health=health)
        for i, health in enumerate(healths)
    )
    return LocalityEndpoints(hosts, zone(name), priority, weight)


def view(
    *groups: LocalityEndpoints, here: str = "", callers: dict[str, int] | None = None, **lb: Any
) -> ClusterView:
    known = None if callers is None else {zone(name): n for name, n in callers.items()}
    pool = ClusterPool(random.Random(1).random, here=zone(here), callers=known)
    balancing = lb.pop("balancing", Balancing.ROUND_ROBIN)
    cluster = Cluster("c", balancing=balancing, lb=LbConfig(**lb))
    return pool.view(cluster, Assignment("c", groups))


def by_group(found: ClusterView, *groups: LocalityEndpoints, turns: int = 4000) -> list[float]:
    """The part of the calls that each group gets."""
    draw = random.Random(2)
    owners = {e.target: i for i, each in enumerate(groups) for e in each.endpoints}
    got = Counter(owners[found.choose(draw.random).target] for _ in range(turns))
    return [got[i] / turns for i in range(len(groups))]


# --- priorities ------------------------------------------------------------------------------

counts = st.builds(
    lambda healthy, degraded, excluded, rest, over: Availability(
        healthy + degraded + excluded + rest,
        healthy,
        degraded,
        excluded,
        healthy,
        degraded,
        healthy + degraded + rest,
        over,
    ),
    *[st.integers(0, 9)] * 4,
    st.integers(100, 200),
)


@given(st.lists(counts, min_size=1, max_size=5), st.integers(0, 100))
def test_the_shares_of_priorities_are_the_whole(found: list[Availability], panic: int) -> None:
    shares = loads(found, panic)
    assert sum(shares.healthy) + sum(shares.degraded) == 100
    assert min(*shares.healthy, *shares.degraded) >= 0
    if all(item.healthy == item.hosts > 0 for item in found):
        assert shares.healthy[0] == 100
        assert not any(shares.panic)


def test_a_lower_priority_serves_when_the_higher_has_nothing() -> None:
    groups = group("a", ILL), group("b", WELL, priority=1)
    assert by_group(view(*groups), *groups) == [0, 1]


def test_calls_spill_over_by_health() -> None:
    groups = group("a", WELL, ILL), group("b", WELL, WELL, priority=1)
    first, second = by_group(view(*groups), *groups)
    assert (first, second) == (pytest.approx(0.7, abs=0.03), pytest.approx(0.3, abs=0.03))
    assert len(view(*groups).endpoints) == 3


def test_degraded_endpoints_serve_when_the_healthy_cannot_do_it_all() -> None:
    groups = (group("a", WELL, WEAK, WEAK, WEAK),)
    found = view(*groups)
    draw = random.Random(3)
    got = Counter(found.choose(draw.random).endpoint.health for _ in range(4000))
    assert got[WELL] / 4000 == pytest.approx(0.35, abs=0.03)
    assert got[WEAK] / 4000 == pytest.approx(0.65, abs=0.03)
    assert {s.endpoint.health for s in view(group("a", WELL, WELL, WEAK)).endpoints} == {WELL, WEAK}
    calm = view(group("a", *[WELL] * 3, WEAK))
    assert {s.endpoint.health for s in calm.endpoints} == {WELL}


def test_a_draining_endpoint_is_neither_used_nor_missed() -> None:
    groups = group("a", WELL, LEAVING, LEAVING, LEAVING), group("b", WELL, priority=1)
    found = view(*groups)
    assert by_group(found, *groups) == [1, 0]
    assert [state.endpoint.health for state in found.endpoints] == [WELL]


def test_panic_uses_all_and_only_when_nothing_else_helps() -> None:
    sick = group("a", WELL, ILL, ILL, ILL)
    assert len(view(sick).endpoints) == 4
    assert len(view(sick, panic_threshold=25).endpoints) == 1
    spare = group("b", *[WELL] * 4, priority=1)
    assert len(view(sick, spare).endpoints) == 5


def test_traffic_may_fail_instead_of_panic() -> None:
    found = view(group("a", WELL, ILL, ILL, ILL), zone_aware=ZoneAware(fail_traffic_on_panic=True))
    assert found.endpoints == ()
    with pytest.raises(NoHealthyUpstream):
        found.pick(random.random)


def test_health_may_be_that_of_weights() -> None:
    heavy, light = Endpoint("10.0.0.1", 1, 9), Endpoint("10.0.0.2", 1, 1, ILL)
    groups = (
        LocalityEndpoints((heavy, light)),
        LocalityEndpoints((Endpoint("10.0.0.3", 1),), priority=1),
    )
    for by_weight, count in ((False, 2), (True, 1)):
        load = Assignment("c", groups, weighted_priority_health=by_weight)
        assert len(ClusterPool(random.random).view(Cluster("c"), load).endpoints) == count


# --- localities ------------------------------------------------------------------------------


def test_localities_share_by_weight_only_where_that_is_asked_for() -> None:
    groups = group("a", WELL, weight=3), group("b", WELL, WELL, WELL, weight=1)
    assert by_group(view(*groups, locality_weighted=True), *groups) == [0.75, 0.25]
    assert by_group(view(*groups), *groups) == [0.25, 0.75]


@pytest.mark.parametrize("balancing", [Balancing.RANDOM, Balancing.LEAST_REQUEST])
def test_every_policy_shares_among_localities(balancing: Balancing) -> None:
    groups = group("a", WELL, weight=3), group("b", WELL, WELL, weight=1)
    found = view(*groups, locality_weighted=True, balancing=balancing)
    assert by_group(found, *groups) == [0.75, 0.25]


@pytest.mark.parametrize(
    ("hosts", "usable", "excluded", "weight"),
    [(4, 4, 0, 10.0), (4, 3, 0, 10.0), (4, 2, 0, 7.0), (4, 2, 2, 10.0), (4, 0, 0, 0), (2, 0, 2, 0)],
)
def test_a_sick_locality_weighs_less(hosts: int, usable: int, excluded: int, weight: float) -> None:
    assert locality_weight(10, hosts, usable, excluded, 140) == pytest.approx(weight)


def test_a_sick_locality_gets_less() -> None:
    groups = group("a", WELL, ILL), group("b", WELL, WELL)
    first, _ = by_group(view(*groups, locality_weighted=True, panic_threshold=0), *groups)
    assert first == pytest.approx(0.7 / 1.7, abs=0.01)


def test_localities_without_weight_share_as_if_there_were_none() -> None:
    groups = group("a", WELL, weight=0), group("b", WELL, WELL, WELL, weight=0)
    assert by_group(view(*groups, locality_weighted=True), *groups) == [0.25, 0.75]


# --- zones -----------------------------------------------------------------------------------

PREFER = ZoneAware(min_cluster_size=1)


def test_calls_stay_in_the_callers_zone() -> None:
    groups = group("a", WELL), group("b", WELL, WELL, WELL)
    assert by_group(view(*groups, here="a", zone_aware=PREFER), *groups) == [1, 0]
    assert by_group(view(*groups, here="a"), *groups) == [0.25, 0.75]
    assert len(view(*groups, here="a", zone_aware=PREFER).endpoints) == 4


def test_a_zone_without_endpoints_of_its_own_uses_all() -> None:
    groups = group("a", WELL), group("b", WELL, WELL, WELL)
    first, second = by_group(view(*groups, here="elsewhere", zone_aware=PREFER), *groups)
    assert (first, second) == (pytest.approx(0.25, abs=0.03), pytest.approx(0.75, abs=0.03))


def test_a_zone_whose_endpoints_are_ill_uses_the_others() -> None:
    groups = group("a", ILL), group("b", WELL, WELL, WELL)
    assert by_group(view(*groups, here="a", zone_aware=PREFER), *groups) == [0, 1]


def test_small_clusters_are_shared_by_all() -> None:
    groups = group("a", WELL), group("b", WELL, WELL, WELL)
    assert by_group(view(*groups, here="a", zone_aware=ZoneAware()), *groups) == [0.25, 0.75]


def test_zones_may_be_preferred_for_a_part_of_the_calls() -> None:
    groups = group("a", WELL), group("b", WELL, WELL, WELL)
    half = ZoneAware(routing_enabled=50, min_cluster_size=1)
    first, _ = by_group(view(*groups, here="a", zone_aware=half), *groups)
    assert first == pytest.approx(0.5 + 0.5 * 0.25, abs=0.03)
    none = ZoneAware(routing_enabled=0, min_cluster_size=1)
    assert by_group(view(*groups, here="a", zone_aware=none), *groups) == [0.25, 0.75]


def test_where_callers_crowd_the_rest_goes_where_there_is_room() -> None:
    """Envoy's example: callers 40 40 20, endpoints 25 50 25: of 10000 calls 6250 stay."""
    groups = group("a", WELL), group("b", WELL, WELL), group("c", WELL)
    callers = {"a": 4, "b": 4, "c": 2}
    shares = by_group(view(*groups, here="a", callers=callers, zone_aware=PREFER), *groups)
    assert shares[0] == pytest.approx(0.625, abs=0.03)
    assert shares[1] == pytest.approx(0.375 * 2 / 3, abs=0.03)
    forced = ZoneAware(min_cluster_size=1, force_local_zone=1)
    found = view(*groups, here="a", callers=callers, zone_aware=forced)
    assert by_group(found, *groups) == [1, 0, 0]


def test_shares_of_zones() -> None:
    a, b, c = zone("a"), zone("b"), zone("c")
    hosts = {a: 25, b: 50, c: 25}
    found = zone_shares(a, hosts, {a: 4, b: 4, c: 2}, force_local=False)
    assert (found.local, found.residual) == (6250, (0, 1000, 1500))
    assert zone_shares(a, hosts, {a: 1, b: 4, c: 2}, force_local=False).local == 10_000
    assert zone_shares(zone("x"), hosts, None, force_local=False).residual == (2500, 7500, 10_000)
