"""Which endpoint takes the next attempt, where no key decides."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshsdk.balancing import ClusterPool, ClusterView
from meshsdk.errors import NoHealthyUpstream
from meshsdk.model import (
    Assignment,
    Balancing,
    Cluster,
    ClusterKind,
    Endpoint,
    Health,
    LbConfig,
    Locality,
    LocalityEndpoints,
    SlowStart,
)


def endpoints(*weights: int, port: int = 9000) -> Assignment:
    members = tuple(Endpoint("10.0.0.1", port + i, weight=w) for i, w in enumerate(weights))
    return Assignment("c", (LocalityEndpoints(members),))


def view(
    balancing: Balancing,
    assignment: Assignment,
    seed: int = 1,
    clock: Callable[[], float] = lambda: 0.0,
    **lb: object,
) -> ClusterView:
    pool = ClusterPool(random.Random(seed).random, clock)
    config = LbConfig(**lb)  # type: ignore[arg-type]
    return pool.view(Cluster("c", balancing=balancing, lb=config), assignment)


def share(view: ClusterView, turns: int, draw: random.Random) -> Counter[str]:
    return Counter(view.choose(draw.random).target for _ in range(turns))


# --- policies --------------------------------------------------------------------------------


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


@pytest.mark.parametrize("balancing", [b for b in Balancing if b is not Balancing.PICK_FIRST])
@given(weights=st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_every_healthy_endpoint_gets_calls(balancing: Balancing, weights: list[int]) -> None:
    cluster = view(balancing, endpoints(*weights), table_size=1009)
    draw = random.Random(1)
    left = {state.target for state in cluster.endpoints}
    for _ in range(4000):
        left.discard(cluster.choose(draw.random).target)
        if not left:
            break
    assert not left


def test_random_ignores_weights() -> None:
    got = share(view(Balancing.RANDOM, endpoints(1, 9)), 4000, random.Random(3))
    assert 1800 < got["10.0.0.1:9000"] < 2200


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 2)])
def test_round_robin_does_not_begin_at_the_same_endpoint_in_every_process(
    weights: tuple[int, ...],
) -> None:
    first = {
        view(Balancing.ROUND_ROBIN, endpoints(*weights), seed).choose(random.random).target
        for seed in range(30)
    }
    assert len(first) == 3


def test_pick_first_stays_with_one() -> None:
    cluster = view(Balancing.PICK_FIRST, endpoints(1, 1, 1))
    assert share(cluster, 10, random.Random(1)) == {"10.0.0.1:9000": 10}
    assert next(s.target for s in cluster.sequence(random.random)) == "10.0.0.1:9000"
    shuffled = {
        view(Balancing.PICK_FIRST, endpoints(1, 1, 1), seed, shuffle_address_list=True)
        .choose(random.random)
        .target
        for seed in range(30)
    }
    assert len(shuffled) == 3


# --- load ------------------------------------------------------------------------------------


def test_least_request_takes_the_less_loaded_of_two() -> None:
    cluster = view(Balancing.LEAST_REQUEST, endpoints(1, 1))
    busy = cluster.endpoints[0]
    for _ in range(5):
        busy.acquire()
    got = share(cluster, 2000, random.Random(5))
    # the busy one is taken only when both draws name it
    assert 400 < got[busy.target] < 600


def test_a_full_scan_takes_the_least_loaded_of_all() -> None:
    cluster = view(Balancing.LEAST_REQUEST, endpoints(1, 1, 1, 1), full_scan=True)
    for state in cluster.endpoints[:2]:
        state.acquire()
    got = share(cluster, 2000, random.Random(5))
    assert set(got) == {state.target for state in cluster.endpoints[2:]}
    assert all(900 < count < 1100 for count in got.values())


def test_least_request_with_weights_counts_active_attempts() -> None:
    cluster = view(Balancing.LEAST_REQUEST, endpoints(1, 2))
    heavy = cluster.endpoints[1]
    for _ in range(9):
        heavy.acquire()
    got = share(cluster, 300, random.Random(5))
    assert got[heavy.target] < got[cluster.endpoints[0].target]


@pytest.mark.parametrize(("bias", "part"), [(0.0, 2 / 3), (1.0, 1 / 3), (2.0, 1 / 9)])
def test_the_bias_says_how_much_active_attempts_weigh(bias: float, part: float) -> None:
    cluster = view(Balancing.LEAST_REQUEST, endpoints(1, 2), active_request_bias=bias)
    heavy = cluster.endpoints[1]
    for _ in range(3):
        heavy.acquire()
    got = share(cluster, 1800, random.Random(5))
    # weight 2 / 4^bias beside 1
    expected = 2 / 4**bias
    assert abs(got[heavy.target] / 1800 - expected / (1 + expected)) < 0.01
    assert part == pytest.approx(expected / (1 + expected))


def test_a_pick_is_counted_until_released() -> None:
    cluster = view(Balancing.ROUND_ROBIN, endpoints(1))
    state = cluster.pick(random.random)
    assert state.active == 1
    state.release()
    assert state.active == 0


# --- slow start ------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def part_of_the_new_one(age: float, slow: SlowStart, weights: tuple[int, ...] = (1, 1)) -> float:
    """What an endpoint gets at that age, beside an old one."""
    clock = Clock()
    pool = ClusterPool(random.Random(1).random, clock)
    cluster = Cluster("c", lb=LbConfig(slow_start=slow))
    pool.view(cluster, endpoints(weights[0]))
    clock.now += 10 * slow.window
    both = pool.view(cluster, endpoints(*weights))
    clock.now += age
    got = share(both, 6000, random.Random(2))
    return got["10.0.0.1:9001"] / 6000


@pytest.mark.parametrize(
    ("age", "slow", "weight"),
    [
        (0.0, SlowStart(60.0), 0.1),
        (3.0, SlowStart(60.0), 0.1),  # not less than the least weight
        (30.0, SlowStart(60.0), 0.5),
        (30.0, SlowStart(60.0, aggression=2.0), 0.5**0.5),
        (15.0, SlowStart(60.0, min_weight_percent=40.0), 0.4),
        (60.0, SlowStart(60.0), 1.0),
        (600.0, SlowStart(60.0), 1.0),
    ],
)
def test_a_new_endpoint_gets_more_and_more(age: float, slow: SlowStart, weight: float) -> None:
    assert part_of_the_new_one(age, slow) == pytest.approx(weight / (1 + weight), abs=0.01)


def test_slow_start_scales_the_weight() -> None:
    assert part_of_the_new_one(30.0, SlowStart(60.0), (1, 4)) == pytest.approx(2 / 3, abs=0.01)


def test_endpoints_that_all_begin_share_alike() -> None:
    clock = Clock()
    slow = SlowStart(60.0)
    cluster = view(Balancing.ROUND_ROBIN, endpoints(1, 1, 1), clock=clock, slow_start=slow)
    assert set(share(cluster, 300, random.Random(1)).values()) == {100}


def test_the_age_of_an_endpoint_survives_a_change_of_configuration() -> None:
    clock = Clock()
    pool = ClusterPool(random.Random(1).random, clock)
    cluster = Cluster("c", lb=LbConfig(slow_start=SlowStart(60.0)))
    before = pool.view(cluster, endpoints(1, 1)).endpoints[0].healthy_since
    clock.now += 30
    after = pool.view(cluster, endpoints(1, 1, 1)).endpoints
    assert after[0].healthy_since == before == 1000.0
    assert after[2].healthy_since == 1030.0


def test_an_endpoint_begins_when_it_is_healthy_for_the_first_time() -> None:
    clock = Clock()
    pool = ClusterPool(random.Random(1).random, clock)
    cluster = Cluster("c", lb=LbConfig(slow_start=SlowStart(60.0)))
    well = Endpoint("10.0.0.1", 9000)

    def load(health: Health) -> Assignment:
        other = Endpoint("10.0.0.2", 9000, health=health)
        return Assignment("c", (LocalityEndpoints((well, other)),))

    pool.view(cluster, load(Health.UNHEALTHY))
    clock.now += 500
    found = pool.view(cluster, load(Health.HEALTHY))
    assert [state.healthy_since for state in found.endpoints] == [1000.0, 1500.0]


# --- views -----------------------------------------------------------------------------------


def test_nothing_usable_is_an_error_that_names_the_cluster() -> None:
    sick = Assignment(
        "c", (LocalityEndpoints((Endpoint("10.0.0.1", 1, health=Health.UNHEALTHY),)),)
    )
    for assignment, threshold in ((Assignment("c"), 50), (sick, 0)):
        with pytest.raises(NoHealthyUpstream, match="cluster c"):
            view(Balancing.ROUND_ROBIN, assignment, panic_threshold=threshold).pick(random.random)


def test_endpoint_states_survive_a_change_of_configuration() -> None:
    pool = ClusterPool(random.random)
    before = pool.view(Cluster("c"), endpoints(1, 1))
    before.endpoints[1].acquire()
    after = pool.view(Cluster("c", balancing=Balancing.LEAST_REQUEST), endpoints(1, 5, 1))
    assert after.endpoints[1] is before.endpoints[1]
    assert after.endpoints[1].active == 1
    assert after.endpoints[1].endpoint.weight == 5


def test_a_state_survives_bad_health() -> None:
    pool = ClusterPool(random.random)

    def load(health: Health) -> Assignment:
        members = Endpoint("10.0.0.1", 9000, health=health), Endpoint("10.0.0.2", 9000)
        return Assignment("c", (LocalityEndpoints(members),))

    before = pool.view(Cluster("c"), load(Health.HEALTHY)).endpoints[0]
    sick = pool.view(Cluster("c", lb=LbConfig(panic_threshold=0)), load(Health.UNHEALTHY))
    assert [state.target for state in sick.endpoints] == ["10.0.0.2:9000"]
    assert pool.view(Cluster("c"), load(Health.HEALTHY)).endpoints[0] is before


def test_an_unchanged_cluster_keeps_its_view() -> None:
    pool = ClusterPool(random.random)
    assert pool.view(Cluster("c"), endpoints(1)) is pool.view(Cluster("c"), endpoints(1))


def test_a_cluster_that_is_not_retained_starts_anew() -> None:
    pool = ClusterPool(random.random)
    before = pool.view(Cluster("c"), endpoints(1))
    pool.retain([])
    assert pool.view(Cluster("c"), endpoints(1)).endpoints[0] is not before.endpoints[0]


@given(
    st.sampled_from(list(Balancing)),
    st.lists(st.integers(1, 3), min_size=1, max_size=6),
    st.integers(0, 2**64 - 1),
)
def test_the_sequence_has_every_endpoint_once(
    balancing: Balancing, weights: list[int], key: int
) -> None:
    cluster = view(balancing, endpoints(*weights), table_size=7, maximum_ring_size=2,
                   minimum_ring_size=1)  # fmt: skip
    order = list(cluster.sequence(random.random, key))
    assert len(order) == len(weights)
    assert set(order) == set(cluster.endpoints)


def test_an_endpoint_that_is_down_is_passed_over() -> None:
    cluster = view(Balancing.RING_HASH, endpoints(1, 1, 1))
    order = list(cluster.sequence(random.random, 77))
    down = set(order[:2])
    state = cluster.pick_up(random.random, 77, down.__contains__)
    assert (state, state.active) == (order[2], 1)
    down.add(order[2])
    assert cluster.pick_up(random.random, 77, down.__contains__) is order[0]


def test_subsetting_keeps_some_endpoints_and_the_same_ones() -> None:
    pool = ClusterPool(random.Random(4).random)
    cluster = Cluster("c", lb=LbConfig(subset_size=3))
    before = {state.target for state in pool.view(cluster, endpoints(*[1] * 20)).endpoints}
    after = {state.target for state in pool.view(cluster, endpoints(*[1] * 21)).endpoints}
    assert len(before) == len(after) == 3
    assert len(before & after) >= 2
    chosen = {
        state.target
        for seed in range(40)
        for state in ClusterPool(random.Random(seed).random)
        .view(cluster, endpoints(*[1] * 20))
        .endpoints
    }
    assert len(chosen) == 20


# --- aggregates ------------------------------------------------------------------------------


def member(pool: ClusterPool, name: str, *healths: Health, **more: object) -> ClusterView:
    hosts = tuple(
        Endpoint("10.0.0.1", 100 * ord(name) + i, health=health) for i, health in enumerate(healths)
    )
    load = Assignment(name, (LocalityEndpoints(hosts, Locality(zone=name)),))
    return pool.view(Cluster(name, **more), load)  # type: ignore[arg-type]


def aggregate(pool: ClusterPool, *members: ClusterView) -> ClusterView:
    kind = ClusterKind.AGGREGATE
    cluster = Cluster("sum", kind, balancing=Balancing.CLUSTER_PROVIDED)
    return pool.view(cluster, None, members)


def test_an_aggregate_stacks_the_priorities_of_its_members() -> None:
    pool = ClusterPool(random.Random(1).random)
    well, ill = Health.HEALTHY, Health.UNHEALTHY
    first = member(pool, "a", well, ill)  # 70 %
    second = member(pool, "b", well, well)
    both = aggregate(pool, first, second)
    got = Counter(both.choose(random.random).cluster.name for _ in range(4000))
    assert 2650 < got["a"] < 2950
    assert {s.target for s in both.endpoints} == {
        first.endpoints[0].target, *(s.target for s in second.endpoints)
    }  # fmt: skip
    assert aggregate(pool, first, second) is both


def test_a_member_without_endpoints_is_no_priority() -> None:
    pool = ClusterPool(random.Random(1).random)
    empty, second = member(pool, "a"), member(pool, "b", Health.HEALTHY)
    assert aggregate(pool, empty, second).choose(random.random).cluster.name == "b"
    with pytest.raises(NoHealthyUpstream):
        aggregate(pool, empty).choose(random.random)


def test_a_member_that_balances_by_key_does_so_in_an_aggregate() -> None:
    pool = ClusterPool(random.Random(1).random)
    ring = member(pool, "a", *[Health.HEALTHY] * 4, balancing=Balancing.RING_HASH)
    both = aggregate(pool, ring)
    for key in range(0, 2**64, 2**59):
        assert both.choose(random.random, key) is ring.choose(random.random, key)
        assert list(both.sequence(random.random, key)) == list(ring.sequence(random.random, key))
