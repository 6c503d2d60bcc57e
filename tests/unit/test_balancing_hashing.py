"""Ring hash and Maglev: what holds for any endpoints and keys. Envoy's own tables: conformance."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshsdk.balancing import ClusterPool, ClusterView
from meshsdk.balancing.hashing import hash_key, xx_hash
from meshsdk.model import (
    Assignment,
    Balancing,
    Cluster,
    Endpoint,
    Health,
    LbConfig,
    Locality,
    LocalityEndpoints,
)

HASHING = [Balancing.RING_HASH, Balancing.MAGLEV]
KEYS = [xx_hash(b"%d" % number) for number in range(400)]
weights = st.lists(st.integers(1, 5), min_size=1, max_size=8)


def assignment(*weights: int, gone: int | None = None) -> Assignment:
    members = tuple(
        Endpoint("10.0.0.1", 9000 + i, weight) for i, weight in enumerate(weights) if i != gone
    )
    return Assignment("c", (LocalityEndpoints(members),))


def view(balancing: Balancing, load: Assignment, pool: ClusterPool | None = None) -> ClusterView:
    cluster = Cluster("c", balancing=balancing, lb=LbConfig(table_size=5003))
    return (pool or ClusterPool(random.Random(1).random)).view(cluster, load)


def homes(cluster: ClusterView) -> list[str]:
    return [cluster.choose(random.random, key).target for key in KEYS]


@pytest.mark.parametrize("balancing", HASHING)
@given(weights=weights)
@settings(max_examples=30, deadline=None)
def test_a_key_stays_where_it_is(balancing: Balancing, weights: list[int]) -> None:
    cluster = view(balancing, assignment(*weights))
    assert homes(cluster) == homes(cluster) == homes(view(balancing, assignment(*weights)))


@pytest.mark.parametrize("balancing", HASHING)
@given(count=st.integers(2, 10), gone=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_when_an_endpoint_goes_only_its_keys_move(
    balancing: Balancing, count: int, gone: int
) -> None:
    gone %= count
    before = homes(view(balancing, assignment(*[1] * count)))
    after = homes(view(balancing, assignment(*[1] * count, gone=gone)))
    lost = f"10.0.0.1:{9000 + gone}"
    moved = sum(was != now for was, now in zip(before, after, strict=True) if was != lost)
    # The others get more places each, and so a few of each other's keys.
    assert moved <= 0.15 * len(KEYS)
    assert lost not in after


@given(count=st.integers(2, 10), gone=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_a_ring_of_fixed_places_moves_no_other_key(count: int, gone: int) -> None:
    gone %= count
    lost = f"10.0.0.1:{9000 + gone}"

    def ring(left: int, gone: int | None = None) -> list[str]:
        lb = LbConfig(minimum_ring_size=100 * left, maximum_ring_size=100 * left)
        cluster = Cluster("c", balancing=Balancing.RING_HASH, lb=lb)
        load = assignment(*[1] * count, gone=gone)
        return homes(ClusterPool(random.random).view(cluster, load))

    for was, now in zip(ring(count), ring(count - 1, gone), strict=True):
        assert now == was or was == lost


@pytest.mark.parametrize("balancing", HASHING)
@given(weights=weights)
@settings(max_examples=30, deadline=None)
def test_keys_spread_by_weight(balancing: Balancing, weights: list[int]) -> None:
    cluster = view(balancing, assignment(*weights))
    keys = [xx_hash(b"%d" % number) for number in range(4000)]
    got = Counter(cluster.choose(random.random, key).target for key in keys)
    for i, weight in enumerate(weights):
        share = weight / sum(weights)
        # A ring of 1024 places is uneven; that is its nature.
        slack = 0.35 if balancing is Balancing.RING_HASH else 0.1
        assert abs(got[f"10.0.0.1:{9000 + i}"] / len(keys) - share) <= slack * share + 0.02


@given(weights=weights, seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_maglev_does_not_look_at_the_order_of_endpoints(weights: list[int], seed: int) -> None:
    members = list(assignment(*weights).localities[0].endpoints)
    random.Random(seed).shuffle(members)
    shuffled = Assignment("c", (LocalityEndpoints(tuple(members)),))
    ordered = view(Balancing.MAGLEV, assignment(*weights))
    assert homes(view(Balancing.MAGLEV, shuffled)) == homes(ordered)


@pytest.mark.parametrize("balancing", HASHING)
def test_without_a_key_one_is_drawn(balancing: Balancing) -> None:
    cluster = view(balancing, assignment(1, 1, 1))
    draw = random.Random(3)
    got = Counter(cluster.choose(draw.random).target for _ in range(3000))
    assert all(count > 600 for count in got.values())
    assert len(got) == 3


@pytest.mark.parametrize("balancing", HASHING)
def test_a_table_is_not_built_again_for_the_same_endpoints(balancing: Balancing) -> None:
    pool = ClusterPool(random.Random(1).random)
    first = view(balancing, assignment(1, 2), pool)
    other = Assignment("c", assignment(1, 2).localities, overprovisioning=200)
    second = view(balancing, other, pool)
    assert first is not second
    third = view(balancing, assignment(1, 3), pool)

    def tables(found: ClusterView) -> list[int]:
        assert found._terms is not None
        return [id(table) for table in found._terms.used.values()]

    assert tables(first) == tables(second) != tables(third)
    # what nobody uses any more is not kept
    assert second._terms is not None
    assert second._terms.known == {}


@pytest.mark.parametrize("balancing", HASHING)
def test_a_priority_is_chosen_by_the_key_too(balancing: Balancing) -> None:
    """Half of the first priority is healthy: 70 of 100 keys stay there, always the same ones."""
    sick = Endpoint("10.0.0.2", 1, health=Health.UNHEALTHY)
    groups = (
        LocalityEndpoints((Endpoint("10.0.0.1", 1), sick)),
        LocalityEndpoints((Endpoint("10.0.0.3", 1),), priority=1),
    )
    cluster = view(balancing, Assignment("c", groups))
    for key in range(200):
        first = cluster.choose(random.random, key).endpoint.address
        assert first == ("10.0.0.1" if key % 100 < 70 else "10.0.0.3")


@pytest.mark.parametrize(
    ("endpoint", "named", "key"),
    [
        (Endpoint("10.0.0.1", 80, hostname="h"), False, "10.0.0.1:80"),
        (Endpoint("10.0.0.1", 80, hostname="h"), True, "h"),
        (Endpoint("::1", 80), False, "[::1]:80"),
        (Endpoint("0:0:0:0:0:0:0:1", 80), False, "[::1]:80"),
        (Endpoint("2001:DB8::0:1", 80), False, "[2001:db8::1]:80"),
        (Endpoint("::ffff:10.0.0.1", 80), False, "[::ffff:10.0.0.1]:80"),
        (Endpoint("/run/x", 0), False, "/run/x"),
        (Endpoint("a", 1, metadata={"envoy.lb": {"hash_key": "k"}}), True, "k"),
        (Endpoint("a", 1, metadata={"envoy.lb": {"hash_key": ""}}), False, "a:1"),
        (Endpoint("a", 1, metadata={"envoy.lb": {"hash_key": 123}}), False, "a:1"),
        (Endpoint("a", 1, metadata={"envoy.lb": {}}), False, "a:1"),
    ],
)
def test_what_an_endpoint_is_known_by(endpoint: Endpoint, named: bool, key: str) -> None:
    assert hash_key(endpoint, named) == key


def test_weights_of_localities_without_weight_leave_nobody() -> None:
    place = LocalityEndpoints((Endpoint("10.0.0.1", 1),), Locality(zone="z"), weight=0)
    lb = LbConfig(locality_weighted=True)
    for balancing in HASHING:
        cluster = Cluster("c", balancing=balancing, lb=lb)
        found = ClusterPool(random.random).view(cluster, Assignment("c", (place,)))
        assert found.endpoints == ()
