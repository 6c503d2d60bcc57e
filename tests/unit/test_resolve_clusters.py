"""The join of clusters whose endpoints do not come from EDS: names, places, members."""

from __future__ import annotations

from typing import Any

import pytest

from meshsdk.balancing import ClusterPool, ClusterView
from meshsdk.errors import NoHealthyUpstream
from meshsdk.model import (
    Assignment,
    Balancing,
    Cluster,
    ClusterKind,
    Dns,
    Endpoint,
    ListenerView,
    LocalityEndpoints,
)
from meshsdk.xds.dns import DNS, Name, Resolved
from meshsdk.xds.naming import ByName
from meshsdk.xds.resolve import Resolution, Resolver
from meshsdk.xds.resources import CLUSTER, ENDPOINT, LISTENER, ResourceState, Status
from tests.unit.test_resolve import at, eds, inline


class Bench:
    """A resolver over a cache, with a real pool of clusters."""

    def __init__(self) -> None:
        self.pool = ClusterPool(lambda: 0.0)
        self.states: dict[tuple[str, Any], Any] = {}
        self.names: frozenset[Name] = frozenset()
        self.wanted: dict[str, frozenset[Any]] = {}
        self.last = Resolution({}, {}, {}, changed=False)
        self.resolver = Resolver(
            lambda url, name: self.states.get((url, name)), ByName("default"), self.pool.view, "n"
        )

    def take(self, result: Resolution) -> Resolution:
        self.wanted.update(result.subscriptions)
        if result.names is not None:
            self.names = result.names
        self.last = result
        return result

    def want(self, *names: str) -> Resolution:
        return self.take(self.resolver.want(clients=names))

    def give(self, url: str, name: str, value: Any) -> Resolution:
        self.states[url, name] = ResourceState(url, name, Status.ACKED, value)
        return self.take(self.resolver.update([(url, name)]))

    def give_cluster(self, cluster: Cluster) -> Resolution:
        return self.give(CLUSTER, cluster.name, cluster)

    def answer(self, host: str, *addresses: str) -> Resolution:
        (name,) = (name for name in self.names if name.host == host)
        state = Resolved(0.0)
        state.arrived, state.addresses = True, addresses
        state.chosen = addresses[0] if addresses else ""
        self.states[DNS, name] = state
        return self.take(self.resolver.update([(DNS, name)]))

    def view(self, name: str = "a:80") -> ListenerView:
        return self.last.listeners[name]

    def cluster(self, name: str, listener: str = "a:80") -> ClusterView:
        found = self.view(listener).clusters[name]
        assert isinstance(found, ClusterView)
        return found

    def targets(self, name: str, listener: str = "a:80") -> list[str]:
        return [state.target for state in self.cluster(name, listener).endpoints]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def named(name: str, kind: ClusterKind, *hosts: str) -> Cluster:
    group = LocalityEndpoints(tuple(Endpoint(host, 80) for host in hosts))
    return Cluster(name, kind, assignment=Assignment(name, (group,)))


def start(bench: Bench, *clusters: str, listener: str = "a:80") -> None:
    bench.want(*bench.last.listeners, listener)
    bench.give(LISTENER, listener, inline(listener, *clusters))


# --- names -----------------------------------------------------------------------------------


def test_a_view_waits_for_the_names_of_its_clusters(bench: Bench) -> None:
    start(bench, "c")
    bench.give_cluster(named("c", ClusterKind.STRICT_DNS, "one", "two", "10.0.0.9"))
    assert bench.names == {Name("one", Dns()), Name("two", Dns())}
    assert ENDPOINT not in bench.wanted
    bench.answer("one", "10.0.0.1", "10.0.0.2")
    assert not bench.last.listeners
    bench.answer("two")  # there is no such host
    assert bench.targets("c") == ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.9:80"]


def test_new_addresses_are_a_new_view_and_the_same_ones_are_not(bench: Bench) -> None:
    start(bench, "c")
    bench.give_cluster(named("c", ClusterKind.STRICT_DNS, "one"))
    bench.answer("one", "10.0.0.1")
    before, (state,) = bench.view(), bench.cluster("c").endpoints
    assert not bench.answer("one", "10.0.0.1").changed
    assert bench.answer("one", "10.0.0.1", "10.0.0.2").changed
    assert bench.view() is not before
    assert bench.cluster("c").endpoints[0] is state
    bench.answer("one")
    with pytest.raises(NoHealthyUpstream):
        bench.cluster("c").pick(lambda: 0.0)


def test_other_names_are_taken_up_when_they_are_known(bench: Bench) -> None:
    start(bench, "c")
    bench.give_cluster(named("c", ClusterKind.LOGICAL_DNS, "old"))
    bench.answer("old", "10.0.0.1", "10.0.0.2")
    bench.give_cluster(named("c", ClusterKind.LOGICAL_DNS, "new"))
    assert {name.host for name in bench.names} == {"old", "new"}
    assert bench.targets("c") == ["10.0.0.1:80"]
    bench.answer("new", "10.0.0.3")
    assert bench.targets("c") == ["10.0.0.3:80"]
    assert {name.host for name in bench.names} == {"new"}
    bench.want()
    assert bench.names == frozenset()


# --- places ----------------------------------------------------------------------------------

DYNAMIC = Cluster("*.example", ClusterKind.DYNAMIC, balancing=Balancing.CLUSTER_PROVIDED)


def test_a_dynamic_cluster_is_another_one_for_each_host(bench: Bench) -> None:
    start(bench, DYNAMIC.name, listener="a.example:80")
    bench.give_cluster(DYNAMIC)
    assert bench.names == {Name("a.example", DYNAMIC.dns)}
    assert not bench.last.listeners
    bench.answer("a.example", "10.0.0.1", "10.0.0.2")
    start(bench, DYNAMIC.name, listener="b.example:81")
    assert "b.example:81" not in bench.last.listeners
    bench.answer("b.example", "10.0.0.1")
    assert bench.targets(DYNAMIC.name, "a.example:80") == ["10.0.0.1:80"]
    assert bench.targets(DYNAMIC.name, "b.example:81") == ["10.0.0.1:81"]
    bench.answer("b.example", "10.0.0.3")
    assert bench.targets(DYNAMIC.name, "a.example:80") == ["10.0.0.1:80"]
    assert bench.targets(DYNAMIC.name, "b.example:81") == ["10.0.0.3:81"]


def test_what_belongs_to_a_host_is_forgotten_with_it(bench: Bench) -> None:
    bench.give_cluster(DYNAMIC)
    start(bench, DYNAMIC.name, listener="a.example:80")
    bench.answer("a.example", "10.0.0.1")
    start(bench, DYNAMIC.name, listener="b.example:80")
    bench.answer("b.example", "10.0.0.1")
    kept = bench.want("a.example:80")
    assert kept.clusters == {DYNAMIC.name, f"{DYNAMIC.name} a.example:80"}
    assert bench.names == {Name("a.example", DYNAMIC.dns)}


def test_the_original_destination_is_the_host_of_the_listener(bench: Bench) -> None:
    original = Cluster("none", ClusterKind.ORIGINAL_DST, balancing=Balancing.CLUSTER_PROVIDED)
    bench.give_cluster(original)
    start(bench, "none", listener="a.example:80")
    bench.answer("a.example", "10.0.0.1", "10.0.0.2")
    assert bench.targets("none", "a.example:80") == ["10.0.0.1:80"]
    assert not bench.cluster("none", "a.example:80").passthrough
    start(bench, "none", listener="[fd00::1]:81")
    assert bench.targets("none", "[fd00::1]:81") == ["[fd00::1]:81"]


def test_an_original_destination_without_address_is_left_to_the_caller(bench: Bench) -> None:
    bench.give_cluster(Cluster("none", ClusterKind.ORIGINAL_DST))
    start(bench, "none", listener="a.example:80")
    bench.answer("a.example")
    assert bench.cluster("none", "a.example:80").passthrough


def test_hosts_outside_the_registry_are_not_looked_up(bench: Bench) -> None:
    bench.give_cluster(Cluster("PassthroughCluster", ClusterKind.ORIGINAL_DST))
    start(bench, "PassthroughCluster", listener="a.example:80")
    assert bench.names == frozenset()
    assert bench.cluster("PassthroughCluster", "a.example:80").passthrough


# --- members ---------------------------------------------------------------------------------


def aggregate(name: str, *members: str) -> Cluster:
    return Cluster(name, ClusterKind.AGGREGATE, members=members)


def test_an_aggregate_waits_for_its_members_and_those_of_its_members(bench: Bench) -> None:
    start(bench, "all")
    bench.give_cluster(aggregate("all", "first", "more"))
    assert bench.wanted[CLUSTER] == {"all", "first", "more"}
    bench.give_cluster(aggregate("more", "second", "first"))
    bench.give_cluster(named("second", ClusterKind.STRICT_DNS, "host"))
    bench.answer("host", "10.0.0.2")
    bench.give_cluster(eds("first"))
    assert not bench.last.listeners
    bench.give(ENDPOINT, "first", at("first", "10.0.0.1"))
    assert bench.targets("all") == ["10.0.0.1:80"]
    assert bench.cluster("all").endpoints[0].cluster.name == "first"


def test_the_next_member_serves_when_the_first_is_empty(bench: Bench) -> None:
    for name in ("first", "second"):
        bench.give_cluster(eds(name))
        bench.give(ENDPOINT, name, at(name, f"10.0.0.{len(name)}"))
    bench.give_cluster(aggregate("all", "first", "gone", "second"))
    start(bench, "all")
    assert not bench.last.listeners
    bench.give(CLUSTER, "gone", None)
    before = bench.view()
    assert bench.targets("all") == ["10.0.0.5:80"]
    bench.give(ENDPOINT, "first", Assignment("first"))
    assert bench.view() is not before
    assert bench.targets("all") == ["10.0.0.6:80"]


def test_members_that_change_and_go(bench: Bench) -> None:
    for name in ("first", "second"):
        bench.give_cluster(eds(name))
        bench.give(ENDPOINT, name, at(name, f"10.0.0.{len(name)}"))
    bench.give_cluster(aggregate("all", "first"))
    start(bench, "all")
    unchanged = bench.view()
    assert not bench.give_cluster(aggregate("all", "first")).changed
    assert bench.view() is unchanged
    bench.give_cluster(aggregate("all", "second"))
    assert bench.targets("all") == ["10.0.0.6:80"]
    assert bench.wanted[CLUSTER] == {"all", "second"}


def test_an_aggregate_of_itself_has_no_endpoint(bench: Bench) -> None:
    bench.give_cluster(aggregate("all", "all"))
    start(bench, "all")
    with pytest.raises(NoHealthyUpstream):
        bench.cluster("all").pick(lambda: 0.0)
