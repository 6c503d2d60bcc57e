"""Where a decision sends a call: destinations that it names itself, subsets, drops, connections."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from meshsdk.balancing import ClusterPool
from meshsdk.call import Forward, Passthrough, Reply, Request, compile_method, decide
from meshsdk.errors import (
    Blocked,
    CallError,
    ClusterNotFound,
    DropOverload,
    ListenerNotFound,
    NoRoute,
    UnusableRoute,
)
from meshsdk.matching import PathKind, PathMatch
from meshsdk.model import (
    Assignment,
    Balancing,
    Cluster,
    ClusterKind,
    DirectResponseAction,
    Drop,
    Endpoint,
    ForwardAction,
    ListenerView,
    LocalityEndpoints,
    RedirectAction,
    Route,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
    WeightedCluster,
)
from meshsdk.opaque import compile_opaque, decide_connection

ANY = RouteMatch(PathMatch(PathKind.PREFIX, "/"))
HEADER = "x-envoy-original-dst-host"


def view(*routes: Route, assignments: Any = (), clusters: tuple[Cluster, ...] = ()) -> ListenerView:
    pool = ClusterPool(lambda: 0.0)
    config = RouteConfiguration("rc", (VirtualHost("vh", ("*",), routes),))
    known = dict(assignments)
    made = {each.name: pool.view(each, known.get(each.name)) for each in clusters}
    return ListenerView("l:80", config, made)


def to(*clusters: tuple[str, int]) -> Route:
    return Route("r", ANY, ForwardAction(tuple(WeightedCluster(*each) for each in clusters)))


def at(name: str, *hosts: str, **more: Any) -> tuple[str, Assignment]:
    group = LocalityEndpoints(tuple(Endpoint(host, 80) for host in hosts))
    return name, Assignment(name, (group,), **more)


# --- the original destination ------------------------------------------------------------------

ORIGINAL = Cluster(
    "original",
    ClusterKind.ORIGINAL_DST,
    balancing=Balancing.CLUSTER_PROVIDED,
    original_dst_header=HEADER,
)


@pytest.mark.parametrize(
    ("headers", "target"),
    [
        ([], "10.0.0.1:80"),
        ([(HEADER, "10.0.0.2:81")], "10.0.0.2:81"),
        ([(HEADER, "[fd00::1]:81")], "[fd00::1]:81"),
        ([(HEADER, "host.example:81")], "10.0.0.1:80"),
        ([(HEADER, "10.0.0.2")], "10.0.0.1:80"),
        ([(HEADER, "10.0.0.2:0")], "10.0.0.1:80"),
    ],
)
def test_a_header_names_the_destination(headers: list[tuple[str, str]], target: str) -> None:
    """A value that is no address is as none: Envoy goes to the destination of the connection."""
    made = view(to(("original", 1)), assignments=[at("original", "10.0.0.1")], clusters=(ORIGINAL,))
    found = decide(made, Request("GET", "/", authority="a", headers=headers), Random(1).random)
    assert isinstance(found, Forward)
    assert found.pick(lambda: 0.0).target == target
    table = compile_method(made, "a", "/s/M")
    request = Request("POST", "/s/M", authority="a", headers=headers, grpc=True)
    found = table.decide(request, Random(1).random)
    assert isinstance(found, Forward)
    assert found.pick(lambda: 0.0).target == target
    assert table.needs_request


def test_a_header_names_the_destination_where_there_is_no_other() -> None:
    made = view(to(("original", 1)), clusters=(ORIGINAL,))
    plain = Request("GET", "/", authority="a")
    assert isinstance(decide(made, plain, Random(1).random), Passthrough)
    named = plain.having([(HEADER, "10.0.0.2:81")])
    assert isinstance(decide(made, named, Random(1).random), Forward)


# --- drops -----------------------------------------------------------------------------------


def test_calls_that_eds_says_to_drop() -> None:
    some = at("c", "10.0.0.1", drops=(Drop("lb", 300_000),))
    made = view(to(("c", 1)), assignments=[some], clusters=(Cluster("c"),))
    random = Random(1).random
    table = compile_method(made, "a", "/s/M")
    assert table.static is None
    for choose in (
        lambda: decide(made, Request("GET", "/", authority="a"), random),
        lambda: table.decide(None, random),
    ):
        found = Counter(type(getattr(choose(), "error", None)) for _ in range(2000))
        assert 500 < found[DropOverload] < 700


# --- connections -----------------------------------------------------------------------------


def test_the_last_route_is_that_of_the_connection_and_weights_count() -> None:
    first = Route("first", RouteMatch(PathMatch(PathKind.PREFIX, "/x")), RedirectAction())
    made = view(
        first,
        to(("a", 30), ("b", 70)),
        assignments=[at("a", "10.0.0.1"), at("b", "10.0.0.2")],
        clusters=(Cluster("a"), Cluster("b")),
    )
    random = Random(1).random
    found: Counter[str] = Counter()
    for _ in range(2000):
        chosen = decide_connection(made, "host:443", random)
        assert chosen is not None
        found[chosen.cluster.name] += 1
    assert 500 < found["a"] < 700


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (ListenerView("l", absent="no such listener"), ListenerNotFound),
        (view(), NoRoute),
        (view(Route("block_all", ANY, DirectResponseAction(502))), Blocked),
        (view(Route("r", ANY, RedirectAction())), UnusableRoute),
        (view(to(("gone", 1))), ClusterNotFound),
    ],
)
def test_why_a_connection_goes_nowhere(made: ListenerView, error: type[CallError]) -> None:
    with pytest.raises(error):
        decide_connection(made, "host:443", lambda: 0.0)
    table = compile_opaque(made, "host:443", "/s/M")
    answer = table.decide(None, lambda: 0.0)
    assert isinstance(answer, Reply)
    assert isinstance(answer.error, error)


def test_a_connection_that_goes_where_it_was_going() -> None:
    passing = Cluster("PassthroughCluster", ClusterKind.ORIGINAL_DST)
    for made in (
        ListenerView("l", passthrough=True),
        view(to(("PassthroughCluster", 1)), clusters=(passing,)),
        view(to(("original", 1)), assignments=[at("original", "10.0.0.1")], clusters=(ORIGINAL,)),
    ):
        assert decide_connection(made, "host:443", lambda: 0.0) is None


def test_an_opaque_method_with_one_cluster_has_a_static_decision() -> None:
    route = Route("r", ANY, ForwardAction((WeightedCluster("c", 1),), timeout=1.0))
    made = view(route, assignments=[at("c", "10.0.0.1")], clusters=(Cluster("c"),))
    static = compile_opaque(made, "host:443", "/s/M").static
    assert static is not None
    assert (static.timeout, static.path, static.authority) == (None, "/s/M", "host:443")
