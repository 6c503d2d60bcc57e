"""Which endpoint takes the next attempt."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshsdk.balancing import ClusterPool, ClusterView
from meshsdk.errors import NoHealthyUpstream
from meshsdk.model import (
    Assignment,
    Balancing,
    Cluster,
    Endpoint,
    Health,
    LbConfig,
    LocalityEndpoints,
)


def endpoints(*weights: int, port: int = 9000) -> Assignment:
    members = tuple(Endpoint("10.0.0.1", port + i, weight=w) for i, w in enumerate(weights))
    return Assignment("c", (LocalityEndpoints(members),))


def view(balancing: Balancing, assignment: Assignment, seed: int = 1) -> ClusterView:
    pool = ClusterPool(random.Random(seed).random)
    return pool.view(Cluster("c", balancing=balancing), assignment)


def share(view: ClusterView, turns: int, draw: random.Random) -> Counter[str]:
    return Counter(view.choose(draw.random).target for _ in range(turns))


@pytest.mark.parametrize("balancing", [Balancing.ROUND_ROBIN, Balancing.LEAST_REQUEST])
@given(weights=st.lists(st.integers(1, 8), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_weights_are_met_exactly_over_whole_cycles(
    balancing: Balancing, weights: list[int], seed: int
) -> None:
    if balancing is Balancing.LEAST_REQUEST and len(set(weights)) == 1:
        weights = [*weights, weights[0] + 1]
    cycle = sum(weights)
    got = share(view(balancing, endpoints(*weights), seed), 20 * cycle, random.Random(seed))
    for i, weight in enumerate(weights):
        assert abs(got[f"10.0.0.1:{9000 + i}"] - 20 * weight) <= len(weights)


def test_random_ignores_weights() -> None:
    got = share(view(Balancing.RANDOM, endpoints(1, 9)), 4000, random.Random(3))
    assert 1800 < got["10.0.0.1:9000"] < 2200


def test_round_robin_does_not_begin_at_the_same_endpoint_in_every_process() -> None:
    first = {
        view(Balancing.ROUND_ROBIN, endpoints(1, 1, 1), seed).choose(random.random).target
        for seed in range(20)
    }
    assert len(first) == 3


def test_least_request_takes_the_less_loaded_of_two() -> None:
    cluster = view(Balancing.LEAST_REQUEST, endpoints(1, 1))
    busy = cluster.endpoints[0]
    for _ in range(5):
        busy.acquire()
    got = share(cluster, 2000, random.Random(5))
    # the busy one is taken only when both draws name it
    assert 400 < got[busy.target] < 600


def test_least_request_with_weights_counts_active_attempts() -> None:
    cluster = view(Balancing.LEAST_REQUEST, endpoints(1, 2))
    heavy = cluster.endpoints[1]
    for _ in range(9):
        heavy.acquire()
    got = share(cluster, 300, random.Random(5))
    assert got[heavy.target] < got[cluster.endpoints[0].target]


def test_a_pick_is_counted_until_released() -> None:
    cluster = view(Balancing.ROUND_ROBIN, endpoints(1))
    state = cluster.pick(random.random)
    assert state.active == 1
    state.release()
    assert state.active == 0


def test_nothing_usable_is_an_error_that_names_the_cluster() -> None:
    sick = Assignment(
        "c", (LocalityEndpoints((Endpoint("10.0.0.1", 1, health=Health.UNHEALTHY),)),)
    )
    calm = LbConfig(panic_threshold=0)
    for assignment, lb in ((Assignment("c"), LbConfig()), (sick, calm)):
        with pytest.raises(NoHealthyUpstream, match="cluster c"):
            ClusterPool(random.random).view(Cluster("c", lb=lb), assignment).pick(random.random)


def test_in_panic_unhealthy_endpoints_are_better_than_none() -> None:
    sick = tuple(Endpoint("10.0.0.1", port, health=Health.UNHEALTHY) for port in (1, 2))
    cluster = view(Balancing.ROUND_ROBIN, Assignment("c", (LocalityEndpoints(sick),)))
    assert len(cluster.endpoints) == 2
    assert set(share(cluster, 4, random.Random(1)).values()) == {2}


def test_a_lower_priority_serves_when_the_higher_has_nothing() -> None:
    sick = LocalityEndpoints((Endpoint("10.0.0.1", 1, health=Health.UNHEALTHY),), priority=0)
    spare = LocalityEndpoints((Endpoint("10.0.0.2", 1),), priority=1)
    cluster = view(Balancing.ROUND_ROBIN, Assignment("c", (sick, spare)))
    assert cluster.choose(random.random).target == "10.0.0.2:1"


def test_endpoint_states_survive_a_change_of_configuration() -> None:
    pool = ClusterPool(random.random)
    before = pool.view(Cluster("c"), endpoints(1, 1))
    before.endpoints[1].acquire()
    after = pool.view(Cluster("c", balancing=Balancing.LEAST_REQUEST), endpoints(1, 5, 1))
    assert after.endpoints[1] is before.endpoints[1]
    assert after.endpoints[1].active == 1
    assert after.endpoints[1].endpoint.weight == 5


def test_an_unchanged_cluster_keeps_its_view() -> None:
    pool = ClusterPool(random.random)
    assert pool.view(Cluster("c"), endpoints(1)) is pool.view(Cluster("c"), endpoints(1))


def test_a_cluster_that_is_not_retained_starts_anew() -> None:
    pool = ClusterPool(random.random)
    before = pool.view(Cluster("c"), endpoints(1))
    pool.retain([])
    assert pool.view(Cluster("c"), endpoints(1)).endpoints[0] is not before.endpoints[0]
