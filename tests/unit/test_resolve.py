"""The join of LDS, RDS, CDS and EDS: complete, make before break, proportional."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshsdk.errors import InvalidResource
from meshsdk.matching import Fraction, PathKind, PathMatch
from meshsdk.model import (
    Assignment,
    Cluster,
    ClusterKind,
    Endpoint,
    Fault,
    FaultAbort,
    ForwardAction,
    Listener,
    ListenerView,
    LocalityEndpoints,
    Route,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
    WeightedCluster,
)
from meshsdk.xds.naming import ByName
from meshsdk.xds.resolve import Resolution, Resolver
from meshsdk.xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, ResourceState, Status

NODE = "node-7"
URLS: dict[type, str] = {
    Listener: LISTENER,
    RouteConfiguration: ROUTE,
    Cluster: CLUSTER,
    Assignment: ENDPOINT,
}


class View(NamedTuple):
    """Stands for `balancing.ClusterView`: what it was made of."""

    cluster: Cluster
    assignment: Assignment | None


def routes(name: str, *clusters: str) -> RouteConfiguration:
    made = tuple(
        Route(
            cluster,
            RouteMatch(PathMatch(PathKind.PREFIX, f"/{cluster}")),
            ForwardAction((WeightedCluster(cluster, 1),)),
        )
        for cluster in clusters
    )
    return RouteConfiguration(name, (VirtualHost("v", ("*",), made),))


def by_name(name: str, route: str, **fields: Any) -> Listener:
    return Listener(name, route_config_name=route, **fields)


def inline(name: str, *clusters: str) -> Listener:
    return Listener(name, routes(name, *clusters))


def eds(name: str, service: str = "") -> Cluster:
    return Cluster(name, eds_name=service or name)


def static(name: str) -> Cluster:
    return Cluster(name, ClusterKind.STATIC)


def at(name: str, *hosts: str) -> Assignment:
    return Assignment(name, (LocalityEndpoints(tuple(Endpoint(host, 80) for host in hosts)),))


class Bench:
    """A resolver with a cache that behaves as that of the ADS machine."""

    def __init__(self) -> None:
        self.states: dict[tuple[str, str], ResourceState] = {}
        self.made = 0
        self.resolver = Resolver(
            lambda url, name: self.states.get((url, name)), ByName("default"), self.make, NODE
        )
        self.last = Resolution({}, {}, {}, changed=False)

    def make(self, cluster: Cluster, assignment: Assignment | None) -> View:
        self.made += 1
        return View(cluster, assignment)

    def take(self, result: Resolution) -> Resolution:
        for url, names in result.subscriptions.items():
            for key in [key for key in self.states if key[0] == url and key[1] not in names]:
                del self.states[key]
            for name in names:
                self.states.setdefault((url, name), ResourceState(url, name))
        self.last = result
        return result

    def want(self, *names: str, servers: Iterable[str] = ()) -> Resolution:
        return self.take(self.resolver.want(clients=names, servers=tuple(servers)))

    def give(self, *values: Any) -> Resolution:
        """These values arrive in one response each of their types; unwanted ones are ignored."""
        changed = set()
        for value in values:
            url = URLS[type(value)]
            state = self.states.get((url, value.name))
            if state is not None:
                state.value, state.status = value, Status.ACKED
                changed.add((url, value.name))
        return self.take(self.resolver.update(changed))

    def lose(self, url: str, name: str, error: str = "") -> Resolution:
        """It does not exist, or was rejected with nothing good before."""
        state = self.states[url, name]
        state.value = None
        state.status = Status.NACKED if error else Status.DOES_NOT_EXIST
        state.error = InvalidResource(f"X {name}", "f", error) if error else None
        return self.take(self.resolver.update({(url, name)}))

    def names(self, url: str) -> set[str]:
        return {name for kind, name in self.states if kind == url}

    def view(self, name: str = "l:80") -> ListenerView:
        return self.last.listeners[name]

    def clusters(self, name: str = "l:80") -> dict[str, Assignment | None]:
        return {name: view.assignment for name, view in self.view(name).clusters.items()}


@pytest.fixture
def bench() -> Bench:
    """`l:80` → route `r` → cluster `a` → one endpoint, published."""
    made = Bench()
    made.want("l:80")
    made.give(by_name("l:80", "r"))
    made.give(routes("r", "a"))
    made.give(eds("a"))
    made.give(at("a", "h1"))
    return made


def test_each_arrival_leads_to_the_next_subscription() -> None:
    b = Bench()
    assert b.want("l:80").subscriptions == {LISTENER: {"l:80"}}
    assert b.give(by_name("l:80", "r")).subscriptions == {ROUTE: {"r"}}
    assert b.give(routes("r", "a", "b")).subscriptions == {CLUSTER: {"a", "b"}}
    assert b.give(eds("a", "service"), static("b")).subscriptions == {ENDPOINT: {"service"}}
    assert b.last.listeners == {}
    result = b.give(at("service", "h1"))
    assert result.changed
    assert result.subscriptions == {}
    assert b.clusters() == {"a": at("service", "h1"), "b": None}
    assert b.view().route_config == routes("r", "a", "b")


def test_inline_routes_need_no_rds() -> None:
    b = Bench()
    b.want("l:80")
    assert b.give(inline("l:80", "b")).subscriptions == {CLUSTER: {"b"}}
    b.give(static("b"))
    assert set(b.clusters()) == {"b"}


def test_routes_without_clusters_are_ready_at_once() -> None:
    b = Bench()
    b.want("l:80")
    assert b.give(inline("l:80")).changed
    assert b.view().clusters == {}


def test_what_was_cached_before_is_used_at_once() -> None:
    b = Bench()
    for url, value in ((LISTENER, inline("l:80", "a")), (CLUSTER, eds("a")), (ENDPOINT, at("a"))):
        b.states[url, value.name] = ResourceState(url, value.name, Status.REQUESTED, value)
    result = b.want("l:80")
    assert result.changed
    assert list(result.subscriptions) == [LISTENER, CLUSTER, ENDPOINT]


def test_an_endpoint_change_replaces_only_the_views_that_use_it(bench: Bench) -> None:
    bench.want("l:80", "m:80", "n:80")
    bench.give(inline("m:80", "a", "b"), inline("n:80", "b"))
    bench.give(static("b"))
    before = bench.last.listeners
    made = bench.made
    result = bench.give(at("a", "h1", "h2"))
    assert result.changed
    assert bench.made == made + 1
    assert bench.clusters("l:80")["a"] == at("a", "h1", "h2")
    assert bench.clusters("m:80")["a"] == at("a", "h1", "h2")
    assert result.listeners["n:80"] is before["n:80"]
    assert result.listeners["m:80"].clusters["b"] is before["m:80"].clusters["b"]


def test_what_changes_nothing_changes_no_view(bench: Bench) -> None:
    before = bench.view()
    result = bench.take(bench.resolver.update({(ROUTE, "r"), (LISTENER, "l:80"), (CLUSTER, "a")}))
    assert (result.changed, result.subscriptions, result.warnings) == (False, {}, ())
    assert bench.view() is before
    unknown = {(url, "zzz") for url in (LISTENER, ROUTE, CLUSTER, ENDPOINT)}
    assert not bench.take(bench.resolver.update(unknown)).changed


def test_fault_and_duration_of_the_filter_go_into_the_view(bench: Bench) -> None:
    fault = Fault(abort=FaultAbort(Fraction(100), 500))
    bench.give(by_name("l:80", "r", fault=fault, max_stream_duration=3.0))
    assert (bench.view().fault, bench.view().max_stream_duration) == (fault, 3.0)


# --- make before break -----------------------------------------------------------------------


def test_new_routes_wait_for_their_clusters_and_the_old_ones_stay_subscribed(
    bench: Bench,
) -> None:
    old = bench.view()
    result = bench.give(routes("r", "b"))
    assert result.subscriptions == {CLUSTER: {"a", "b"}}
    assert not result.changed
    result = bench.give(eds("b"))
    assert result.subscriptions == {ENDPOINT: {"a", "b"}}
    assert bench.view() is old
    result = bench.give(at("b", "h9"))
    assert bench.clusters() == {"b": at("b", "h9")}
    assert result.subscriptions == {CLUSTER: {"b"}, ENDPOINT: {"b"}}
    assert result.clusters == {"b"}


def test_the_old_view_goes_on_to_follow_its_endpoints(bench: Bench) -> None:
    old = bench.view().route_config
    bench.give(routes("r", "b"))
    bench.give(at("a", "h2"))
    assert bench.view().route_config is old
    assert bench.clusters() == {"a": at("a", "h2")}


def test_a_cluster_that_goes_before_its_routes_is_kept_until_they_are_replaced(
    bench: Bench,
) -> None:
    bench.give(routes("r", "b"))
    bench.lose(CLUSTER, "a")
    assert bench.clusters() == {"a": at("a", "h1")}
    bench.give(static("b"))
    assert bench.clusters() == {"b": None}


def test_a_plan_that_is_overtaken_is_forgotten(bench: Bench) -> None:
    bench.give(routes("r", "b"))
    bench.give(routes("r", "c"))
    assert bench.names(CLUSTER) == {"a", "c"}


def test_a_new_route_configuration_name_waits_too(bench: Bench) -> None:
    old = bench.view()
    result = bench.give(by_name("l:80", "r2"))
    assert result.subscriptions == {ROUTE: {"r", "r2"}}
    assert bench.view() is old
    bench.give(at("a", "h3"))
    assert bench.clusters() == {"a": at("a", "h3")}
    result = bench.give(routes("r2", "a"))
    assert result.subscriptions == {ROUTE: {"r2"}}
    assert bench.view().route_config == routes("r2", "a")


def test_a_cluster_warms_before_it_changes_its_endpoints(bench: Bench) -> None:
    result = bench.give(eds("a", "other"))
    assert result.subscriptions == {ENDPOINT: {"a", "other"}}
    assert not result.changed
    bench.give(at("a", "h4"))
    assert bench.clusters() == {"a": at("a", "h4")}
    result = bench.give(at("other", "h5"))
    assert bench.clusters() == {"a": at("other", "h5")}
    assert result.subscriptions == {ENDPOINT: {"other"}}


def test_a_cluster_may_change_its_kind(bench: Bench) -> None:
    result = bench.give(static("a"))
    assert bench.clusters() == {"a": None}
    assert result.subscriptions == {ENDPOINT: frozenset()}


def test_a_cluster_that_comes_to_exist_is_waited_for_with_its_endpoints() -> None:
    b = Bench()
    b.want("l:80")
    b.give(inline("l:80", "a", "b"))
    b.lose(CLUSTER, "a")
    b.give(eds("a"))
    b.give(static("b"))
    assert b.last.listeners == {}
    b.give(at("a", "h1"))
    assert set(b.clusters()) == {"a", "b"}


# --- what does not exist ---------------------------------------------------------------------


def test_a_deleted_cluster_is_missing_in_the_view_and_comes_back(bench: Bench) -> None:
    result = bench.lose(CLUSTER, "a")
    assert bench.clusters() == {}
    assert result.warnings == (
        "Cluster a does not exist; listener l:80 routes to it, those calls fail with 503 "
        f"(node ID: {NODE})",
    )
    assert bench.names(CLUSTER) == {"a"}
    assert not bench.take(bench.resolver.update({(CLUSTER, "a")})).changed
    bench.give(eds("a"))
    bench.give(at("a", "h1"))
    assert bench.clusters() == {"a": at("a", "h1")}


def test_a_missing_cluster_is_told_once() -> None:
    b = Bench()
    b.want("l:80")
    b.give(inline("l:80", "gone", "a"))
    b.lose(CLUSTER, "gone")
    assert len(b.give(static("a")).warnings) == 1
    assert b.give(eds("a")).warnings == ()
    assert b.give(at("a", "h")).warnings == ()


def test_a_rejected_cluster_fails_only_its_own_calls() -> None:
    b = Bench()
    b.want("l:80")
    b.give(inline("l:80", "a", "b"))
    b.give(static("b"))
    result = b.lose(CLUSTER, "a", "bad")
    assert set(b.clusters()) == {"b"}
    assert "Cluster a was rejected: X a: f: bad" in result.warnings[0]


def test_endpoints_that_do_not_exist_are_none(bench: Bench) -> None:
    bench.lose(ENDPOINT, "a")
    assert bench.clusters() == {"a": None}


def test_a_listener_that_does_not_exist_says_so(bench: Bench) -> None:
    result = bench.lose(LISTENER, "l:80")
    assert bench.view().absent == f"Listener l:80 does not exist (node ID: {NODE})"
    assert bench.names(CLUSTER) == set()
    assert result.clusters == frozenset()
    assert len(result.warnings) == 1
    again = bench.take(bench.resolver.update({(LISTENER, "l:80")}))
    assert not again.changed
    bench.give(by_name("l:80", "r"))
    assert bench.view().absent
    bench.give(routes("r", "a"))
    bench.give(eds("a"))
    bench.give(at("a", "h1"))
    assert not bench.view().absent


def test_a_listener_that_was_rejected_says_why() -> None:
    b = Bench()
    b.want("l:80")
    b.lose(LISTENER, "l:80", "too new")
    assert "was rejected: X l:80: f: too new" in b.view().absent


def test_a_listener_of_a_server_is_none_of_a_client() -> None:
    b = Bench()
    b.want("l:80")
    b.give(Listener("l:80", address="10.0.0.1:80"))
    assert "listener of a server" in b.view().absent


def test_routes_that_do_not_exist_are_told_and_still_wanted() -> None:
    b = Bench()
    b.want("l:80")
    b.give(by_name("l:80", "r"))
    b.lose(ROUTE, "r")
    assert "RouteConfiguration r does not exist" in b.view().absent
    b.give(routes("r"))
    assert not b.view().absent


def test_a_listener_that_points_to_nothing_keeps_its_routes(bench: Bench) -> None:
    old = bench.view()
    bench.give(by_name("l:80", "r2"))
    result = bench.lose(ROUTE, "r2")
    assert bench.view() is old
    assert len(result.warnings) == 1
    assert "keeps its previous routes" in result.warnings[0]
    again = bench.take(bench.resolver.update({(LISTENER, "l:80")}))
    assert again.warnings == ()
    bench.give(routes("r2", "a"))
    assert bench.view().route_config == routes("r2", "a")


# --- wishes ----------------------------------------------------------------------------------


def test_what_is_no_longer_wanted_is_forgotten(bench: Bench) -> None:
    result = bench.want()
    assert result.changed
    assert result.listeners == {}
    assert all(names == frozenset() for names in result.subscriptions.values())
    assert list(result.subscriptions) == [LISTENER, ROUTE, CLUSTER, ENDPOINT]
    assert result.clusters == frozenset()


def test_a_cluster_that_another_listener_uses_stays(bench: Bench) -> None:
    bench.want("l:80", "m:80")
    bench.give(inline("m:80", "a"))
    shared = bench.view().clusters["a"]
    result = bench.want("m:80")
    assert result.clusters is None
    assert bench.view("m:80").clusters["a"] is shared


def test_forgetting_what_never_came_changes_nothing() -> None:
    b = Bench()
    b.want("l:80")
    assert not b.want().changed


def test_server_listeners() -> None:
    b = Bench()
    assert b.want(servers=["s"]).subscriptions == {LISTENER: {"s"}}
    listener = Listener("s", address="10.0.0.1:80")
    result = b.give(listener)
    assert (result.changed, result.server_listeners) == (True, {"s": listener})
    assert not b.want("l:80", servers=["s"]).changed
    assert b.lose(LISTENER, "s").server_listeners == {}


# --- properties ------------------------------------------------------------------------------

_CLUSTERS = ("a", "b", "c")
_SERVICES = ("x", "y")


class AnyOrder(RuleBasedStateMachine):
    """The world changes and arrives in every order; no view is ever incomplete."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.bench.want("l:80", "m:80")
        self.world: dict[tuple[str, str], Any] = {}
        self.seen: dict[str, ListenerView] = {}
        self.known: dict[int, View] = {}

    @rule(name=st.sampled_from(["l:80", "m:80"]), route=st.sampled_from(["r", "q", ""]))
    def change_listener(self, name: str, route: str) -> None:
        self.world[LISTENER, name] = by_name(name, route) if route else None

    @rule(name=st.sampled_from(["r", "q"]), used=st.sets(st.sampled_from(_CLUSTERS)))
    def change_routes(self, name: str, used: set[str]) -> None:
        self.world[ROUTE, name] = routes(name, *sorted(used))

    @rule(name=st.sampled_from(_CLUSTERS), service=st.sampled_from([*_SERVICES, "static", ""]))
    def change_cluster(self, name: str, service: str) -> None:
        made = static(name) if service == "static" else eds(name, service)
        self.world[CLUSTER, name] = made if service else None

    @rule(name=st.sampled_from(_SERVICES), host=st.sampled_from(["h1", "h2"]), there=st.booleans())
    def change_endpoints(self, name: str, host: str, there: bool) -> None:
        self.world[ENDPOINT, name] = at(name, host) if there else None

    @precondition(lambda self: self.behind())
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        self.deliver(data.draw(st.sampled_from(sorted(self.behind()))))

    def behind(self) -> list[tuple[str, str]]:
        """What the cache has not heard of yet."""
        return [
            key
            for key, state in self.bench.states.items()
            if not state.arrived or state.value != self.world.get(key)
        ]

    def deliver(self, key: tuple[str, str]) -> None:
        value = self.world.get(key)
        if value is None:
            self.bench.lose(*key)
        else:
            self.bench.give(value)

    @invariant()
    def every_new_view_is_complete(self) -> None:
        for name, view in self.bench.last.listeners.items():
            if self.seen.get(name) is view or view.route_config is None:
                continue
            before = self.seen.get(name)
            for cluster in view.route_config.cluster_names - view.clusters.keys():
                state = self.bench.states[CLUSTER, cluster]
                known_missing = state.arrived and state.value is None
                kept = before is not None and before.route_config is view.route_config
                assert known_missing or kept
            self.seen[name] = view
        views = self.bench.last.listeners.values()
        for made in [made for view in views for made in view.clusters.values()]:
            if made.cluster.kind is ClusterKind.EDS and id(made) not in self.known:
                # What was made now, not what is kept of a cluster that is gone.
                self.known[id(made)] = made
                if made.assignment is None:
                    assert self.bench.states[ENDPOINT, made.cluster.eds_name].arrived

    @invariant()
    def what_calls_use_stays_subscribed(self) -> None:
        for view in self.bench.last.listeners.values():
            if view.route_config is not None:
                assert view.route_config.cluster_names <= self.bench.names(CLUSTER)

    def teardown(self) -> None:
        """Once everything has arrived, the views are those of a resolver that starts anew."""
        while self.behind():
            self.deliver(sorted(self.behind())[0])
        fresh = Bench()
        fresh.states = self.bench.states
        result = fresh.resolver.want(clients=("l:80", "m:80"))
        for name, view in self.bench.last.listeners.items():
            other = result.listeners[name]
            listener = self.world.get((LISTENER, name))
            if listener is not None and self.world.get((ROUTE, listener.route_config_name)) is None:
                continue  # keeps its last good routes, which a new one never saw
            assert view.absent == other.absent
            assert view.route_config == other.route_config
            assert view.clusters == other.clusters
        assert result.listeners.keys() == self.bench.last.listeners.keys()


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
