"""Envoy's own tables of hashes, rings, Maglev slots and priority loads."""

from __future__ import annotations

from typing import Any

import pytest

from meshsdk.balancing import ClusterPool, ClusterView, EndpointState
from meshsdk.balancing.hashing import murmur_hash_2, xx_hash
from meshsdk.balancing.health import loads
from meshsdk.balancing.layers import Group, Layer
from meshsdk.model import (
    Assignment,
    Balancing,
    Cluster,
    Endpoint,
    HashFunction,
    Health,
    LbConfig,
    Locality,
    LocalityEndpoints,
)
from tests.support.cases import Case, entries


def cases(topic: str, name: str) -> list[Any]:
    return entries(f"envoy/{topic}", name)


# --- hash ------------------------------------------------------------------------------------

hash_topic = pytest.mark.topic("envoy/hash")


@hash_topic
@pytest.mark.parametrize("case", cases("hash", "xxhash64_seed0"))
def test_xx_hash(case: Case) -> None:
    assert xx_hash(case["input"].encode()) == case["xxh64"]


@hash_topic
@pytest.mark.parametrize("case", cases("hash", "murmurhash2_64"))
def test_murmur_hash_2(case: Case) -> None:
    assert murmur_hash_2(case["input"].encode()) == case["hash"]


def hosts_of(case: Case) -> tuple[Endpoint, ...]:
    made = []
    by_key = "MetadataHashKey" in case["id"]
    for host in case["hosts"]:
        address, _, port = host["address"].rpartition(":")
        name = host["hostname_or_hash_key"] or ""
        metadata = {"envoy.lb": {"hash_key": name}} if by_key else {}
        hostname = "" if by_key else name
        made.append(
            Endpoint(address, int(port), host["weight"], Health.HEALTHY, hostname, metadata)
        )
    return tuple(made)


def view_of(case: Case, balancing: Balancing, lb: LbConfig) -> ClusterView:
    hosts = hosts_of(case)
    weights = case.get("locality_weights")
    localities: tuple[LocalityEndpoints, ...] = (LocalityEndpoints(hosts),)
    if weights:  # each host is alone in its locality
        localities = tuple(
            LocalityEndpoints((host,), Locality(zone=f"{i:03}"), weight=weight)
            for i, (host, weight) in enumerate(zip(hosts, weights, strict=True))
        )
    cluster = Cluster("c", balancing=balancing, lb=lb)
    return ClusterPool(lambda: 0.0).view(cluster, Assignment("c", localities))


def chosen(view: ClusterView, key: int) -> int:
    """The index of the endpoint of a key."""
    return view.endpoints.index(view.choose(lambda: 0.5, key))


@hash_topic
@pytest.mark.parametrize("case", cases("hash", "ring_hash_rings"))
def test_rings(case: Case) -> None:
    given = ("minimum_ring_size", "maximum_ring_size")
    lb = LbConfig(
        **{name: int(case[name]) for name in given if case[name] is not None},
        hash_function=HashFunction(case["hash_function"]),
        use_hostname_for_hashing=case["use_hostname_for_hashing"],
        locality_weighted=case["locality_weighted"],
    )
    view = view_of(case, Balancing.RING_HASH, lb)
    names = [host["address"].rpartition(":")[2] for host in case["hosts"]]
    # Up to its place a key goes to an entry, from there on to the next one.
    ring = [(entry["position"], names.index(entry["host"])) for entry in case["ring"]]
    for (place, index), (_, following) in zip(ring, [*ring[1:], ring[0]], strict=True):
        assert (chosen(view, place), chosen(view, place + 1)) == (index, following)
    for pick in case["picks"]:
        assert chosen(view, pick["hash"]) == pick["host_index"]


@hash_topic
@pytest.mark.parametrize("case", cases("hash", "maglev_tables"))
def test_maglev_tables(case: Case) -> None:
    size = case["table_size"]
    lb = LbConfig(
        table_size=size,
        use_hostname_for_hashing=case["use_hostname_for_hashing"],
        locality_weighted=bool(case["locality_weights"]),
    )
    view = view_of(case, Balancing.MAGLEV, lb)
    assert [chosen(view, slot) for slot in range(size)] == case["table_host_index_by_slot"]
    assert [chosen(view, 3 * size + slot) for slot in range(size)] == (
        case["table_host_index_by_slot"]
    )


# --- priority loads --------------------------------------------------------------------------

load_topic = pytest.mark.topic("envoy/priority_load")
HEALTH = {
    "healthy": Health.HEALTHY,
    "degraded": Health.DEGRADED,
    "excluded": Health.DRAINING,
    "unhealthy": Health.UNHEALTHY,
}


def layer(hosts: list[tuple[int, str]], overprovisioning: int, by_weight: bool) -> Layer:
    cluster = Cluster("c")
    states = tuple(
        EndpointState(Endpoint("10.0.0.1", port, weight, HEALTH[health]), cluster)
        for port, (weight, health) in enumerate(hosts, 1)
    )
    return Layer((Group(Locality(), 1, states),), overprovisioning, by_weight)


def counted(priority: Case) -> list[tuple[int, str]]:
    kinds = {name: priority[name] for name in ("healthy", "degraded", "excluded")}
    kinds["unhealthy"] = priority["hosts"] - sum(kinds.values())
    return [(1, name) for name, count in kinds.items() for _ in range(count)]


# For this one Envoy's test sets the threshold to 0 ("to prevent total panic from kicking in") and
# back to 50 for the next; the file has 50 for both.
WITHOUT_PANIC = "GentleFailoverWithExtraLevels#13"


def check(case: Case, layers: list[Layer]) -> None:
    threshold = case.get("panic_threshold_percent", 50) if case["id"] != WITHOUT_PANIC else 0
    found = loads([each.availability for each in layers], threshold)
    assert list(found.healthy) == case["want_load_percent"]
    if "want_degraded_load_percent" in case:
        assert list(found.degraded) == case["want_degraded_load_percent"]
    if "want_panic" in case:
        assert list(found.panic) == case["want_panic"]


@load_topic
@pytest.mark.parametrize("case", cases("priority_load", "load_by_priority"))
def test_load_by_priority(case: Case) -> None:
    over = case["overprovisioning_factor"]
    check(case, [layer(counted(each), over, False) for each in case["priorities"]])


@load_topic
@pytest.mark.parametrize("case", cases("priority_load", "weighted_priority_health"))
def test_weighted_priority_health(case: Case) -> None:
    over = case["overprovisioning_factor"]
    check(case, [layer(each["hosts"], over, True) for each in case["priorities"]])
