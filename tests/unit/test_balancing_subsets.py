"""Subsets by metadata. What Envoy does with the same resources: conformance."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from meshsdk.balancing import ClusterPool, ClusterView
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
    SubsetFallback,
    Subsets,
    SubsetSelector,
)

STAGE = SubsetSelector(frozenset({"stage"}))
BOTH = SubsetSelector(frozenset({"stage", "version"}))
ANY = SubsetFallback.ANY_ENDPOINT


def host(port: int, health: Health = Health.HEALTHY, **labels: Any) -> Endpoint:
    return Endpoint("10.0.0.1", port, health=health, metadata={"envoy.lb": labels})


def view(*hosts: Endpoint, lb: dict[str, Any] | None = None, **config: Any) -> ClusterView:
    config.setdefault("selectors", (STAGE, BOTH))
    settings = LbConfig(subsets=Subsets(**config), **(lb or {}))
    load = Assignment("c", (LocalityEndpoints(hosts),))
    return ClusterPool(random.Random(1).random).view(Cluster("c", lb=settings), load)


HOSTS = (
    host(1, stage="prod", version="1"),
    host(2, stage="prod", version="2"),
    host(3, stage="dev", version="1"),
    host(4),
)


def ports(found: ClusterView) -> set[int]:
    return {state.endpoint.port for state in found.endpoints}


def test_a_match_must_have_the_keys_of_a_selector() -> None:
    found = view(*HOSTS)
    assert ports(found.subset({"stage": "prod"})) == {1, 2}
    assert ports(found.subset({"version": "1", "stage": "prod"})) == {1}
    for match in (None, {}, {"version": "1"}, {"stage": "none"}, {"stage": "prod", "x": "y"}):
        with pytest.raises(NoHealthyUpstream):
            found.subset(match).pick(random.random)


def test_without_a_match_the_fallback_serves() -> None:
    assert ports(view(*HOSTS, fallback=ANY)) == {1, 2, 3, 4}
    default = {"fallback": SubsetFallback.DEFAULT_SUBSET, "default_subset": {"stage": "dev"}}
    assert ports(view(*HOSTS, **default)) == {3}
    assert ports(view(*HOSTS, **default).subset({"stage": "none"})) == {3}


def test_values_are_compared_with_their_types() -> None:
    found = view(host(1, stage="1"), host(2, stage=1.0), host(3, stage=True))
    assert [ports(found.subset({"stage": value})) for value in ("1", 1.0, True)] == [{1}, {2}, {3}]


def test_redundant_keys_may_be_allowed() -> None:
    found = view(*HOSTS, allow_redundant_keys=True)
    assert ports(found.subset({"stage": "prod", "x": "y"})) == {1, 2}


def test_a_list_of_fallbacks_is_tried_in_order() -> None:
    found = view(*HOSTS, fallback_list=True)
    match = {"stage": "prod", "fallback_list": [{"version": "9"}, {"version": "2"}, {}]}
    assert ports(found.subset(match)) == {2}
    assert ports(found.subset({"stage": "prod", "fallback_list": []})) == {1, 2}
    assert ports(found.subset({"stage": "x", "fallback_list": [{"version": "9"}]})) == set()


def test_a_subset_of_one_host() -> None:
    one = SubsetSelector(frozenset({"stage"}), single_host=True)
    assert ports(view(*HOSTS, selectors=(one,)).subset({"stage": "prod"})) == {1}


def test_a_default_subset_of_nobody_makes_way_in_panic() -> None:
    config = {"fallback": SubsetFallback.DEFAULT_SUBSET, "default_subset": {"stage": "gone"}}
    assert ports(view(*HOSTS, **config)) == set()
    assert ports(view(*HOSTS, **config, panic_mode_any=True)) == {1, 2, 3, 4}


def test_a_subset_has_its_own_health() -> None:
    sick = (host(11, Health.UNHEALTHY, stage="a"), *HOSTS)
    assert ports(view(*sick, host(12, stage="a")).subset({"stage": "a"})) == {12}
    assert ports(view(*sick).subset({"stage": "a"})) == {11}  # in panic
    assert ports(view(*sick, lb={"panic_threshold": 0}).subset({"stage": "a"})) == set()


def test_no_selector_means_no_subsets() -> None:
    assert ports(view(*HOSTS, selectors=())) == {1, 2, 3, 4}
    assert ports(view(*HOSTS, selectors=()).subset({"stage": "prod"})) == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("aware", "scaled", "part"), [(False, False, 0.5), (True, False, 0.75), (True, True, 0.5)]
)
def test_weights_of_localities_in_a_subset(aware: bool, scaled: bool, part: float) -> None:
    many = tuple(host(port, stage="b") for port in (1, 2))
    groups = (
        LocalityEndpoints((host(3, stage="a"), *many), Locality(zone="x"), weight=3),
        LocalityEndpoints((host(4, stage="a"),), Locality(zone="y"), weight=1),
    )
    subsets = Subsets(selectors=(STAGE,), locality_weight_aware=aware, scale_locality_weight=scaled)
    cluster = Cluster("c", lb=LbConfig(locality_weighted=True, subsets=subsets))
    found = ClusterPool(random.Random(1).random).view(cluster, Assignment("c", groups))
    chosen = found.subset({"stage": "a"})
    got = Counter(chosen.choose(random.random).endpoint.port for _ in range(400))
    assert got[3] / 400 == part


def test_a_subset_balances_by_key() -> None:
    subsets = Subsets(selectors=(STAGE,), fallback=ANY)
    cluster = Cluster("c", balancing=Balancing.RING_HASH, lb=LbConfig(subsets=subsets))
    load = Assignment("c", (LocalityEndpoints(HOSTS),))
    chosen = ClusterPool(random.random).view(cluster, load).subset({"stage": "prod"})
    for key in range(0, 2**64, 2**58):
        state = chosen.choose(random.random, key)
        assert state is chosen.choose(random.random, key)
        assert state.endpoint.port in {1, 2}
