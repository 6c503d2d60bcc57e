"""What is to be done with a request: decisions, without any I/O."""

from __future__ import annotations

import random as random_module
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshsdk.balancing import ClusterPool
from meshsdk.call import Forward, Passthrough, Reply, Request, compile_method, decide
from meshsdk.errors import NoHealthyUpstream
from meshsdk.matching import Fraction, HeaderMatch, PathKind, PathMatch, StringKind, StringMatch
from meshsdk.model import (
    AppendAction,
    Assignment,
    Cluster,
    ClusterKind,
    DirectResponseAction,
    Endpoint,
    Fault,
    FaultAbort,
    FaultDelay,
    ForwardAction,
    HeaderMutations,
    HeaderOption,
    ListenerView,
    LocalityEndpoints,
    RedirectAction,
    RegexRewrite,
    Route,
    RouteConfiguration,
    RouteMatch,
    UnsupportedAction,
    VirtualHost,
    WeightedCluster,
)

ANY = RouteMatch(PathMatch(PathKind.PREFIX, "/"))
JASON = HeaderMatch("end-user", StringMatch(StringKind.EXACT, "jason"))
ALWAYS = Fraction(100)


def to(*clusters: str | tuple[str, int], match: RouteMatch = ANY, **more: Any) -> Route:
    action = {k: more.pop(k) for k in list(more) if k in ForwardAction.__dataclass_fields__}
    entries = [c if isinstance(c, tuple) else (c, 1) for c in clusters]
    targets = tuple(WeightedCluster(name, weight) for name, weight in entries)
    return Route("r", match, ForwardAction(targets, **action), **more)


def view(*routes: Route, domains: tuple[str, ...] = ("*",), **more: Any) -> ListenerView:
    pool = ClusterPool(lambda: 0.0)
    config = RouteConfiguration("rc", (VirtualHost("vh", domains, routes),), **more)
    clusters = {
        name: pool.view(
            Cluster(name), Assignment(name, (LocalityEndpoints((Endpoint("10.0.0.1", 80),)),))
        )
        for name in config.cluster_names
        if name != "gone"
    }
    return ListenerView("l", config, clusters)


def get(path: str = "/", *headers: tuple[str, str], authority: str = "svc", **more: Any) -> Request:
    return Request("GET", path, authority=authority, headers=headers, **more)


def zero() -> float:
    return 0.0


def forward(listener: ListenerView, request: Request) -> Forward:
    decision = decide(listener, request, zero)
    assert isinstance(decision, Forward)
    return decision


def reply(listener: ListenerView, request: Request) -> Reply:
    decision = decide(listener, request, zero)
    assert isinstance(decision, Reply)
    return decision


def test_the_first_route_that_matches_wins() -> None:
    listener = view(to("v2", match=RouteMatch(ANY.path, headers=(JASON,))), to("v1"), to("v3"))
    assert forward(listener, get("/", ("end-user", "jason"))).cluster.cluster.name == "v2"
    assert forward(listener, get("/")).cluster.cluster.name == "v1"


@pytest.mark.parametrize(
    ("authority", "expected"),
    [
        ("a.com", "exact"),
        ("A.COM", "exact"),
        ("x.b.com", "long suffix"),
        ("x.com", "suffix"),
        ("foo.org", "prefix"),
        ("else", "any"),
    ],
)
def test_virtual_hosts_by_exact_then_longest_suffix_then_prefix_then_any(
    authority: str, expected: str
) -> None:
    hosts = tuple(
        VirtualHost(name, domains, ())
        for name, domains in [
            ("any", ("*",)),
            ("prefix", ("foo.*",)),
            ("suffix", ("*.com",)),
            ("long suffix", ("*.b.com",)),
            ("exact", ("a.com",)),
        ]
    )
    found = RouteConfiguration("rc", hosts).virtual_host(authority)
    assert found is not None
    assert found.name == expected


def test_a_wildcard_stands_for_at_least_one_character() -> None:
    config = RouteConfiguration("rc", (VirtualHost("v", ("*-bar.foo.com",), ()),))
    assert config.virtual_host("baz-bar.foo.com")
    assert config.virtual_host("-bar.foo.com") is None


def test_no_virtual_host_and_no_route_are_404_nr() -> None:
    for listener in (view(to("a"), domains=("other",)), view()):
        answer = reply(listener, get())
        assert (answer.status, answer.flag, answer.grpc_code) == (404, "NR", 12)


def test_a_cluster_that_does_not_exist_is_503_nc() -> None:
    answer = reply(view(to("gone")), get())
    assert (answer.status, answer.flag, answer.body) == (503, "NC", b"")
    assert answer.error is not None
    assert answer.error.cluster == "gone"


def test_an_absent_listener_says_why() -> None:
    answer = reply(ListenerView("svc:80", absent="svc:80 does not exist"), get())
    assert (answer.status, answer.grpc_code) == (503, 14)
    assert b"does not exist" in answer.body


def test_an_action_that_is_not_supported_fails_the_call_and_sends_nothing() -> None:
    answer = reply(view(Route("r", ANY, UnsupportedAction("cluster_header"))), get())
    assert answer.status == 500
    assert b"cluster_header" in answer.body


def test_bypass_and_original_destination_pass_through() -> None:
    assert decide(ListenerView("", passthrough=True), get(), zero) == Passthrough()
    pool = ClusterPool(zero)
    config = view(to("PassthroughCluster")).route_config
    away = pool.view(Cluster("PassthroughCluster", ClusterKind.ORIGINAL_DST), None)
    listener = ListenerView("l", config, {"PassthroughCluster": away})
    assert decide(listener, get(), zero) == Passthrough()


@given(st.lists(st.integers(0, 50), min_size=2, max_size=5).filter(any), st.integers(0, 9))
def test_weights_converge(weights: list[int], seed: int) -> None:
    listener = view(to(*[(f"c{i}", w) for i, w in enumerate(weights)]))
    draw = random_module.Random(seed).random
    counts: Counter[str] = Counter()
    for _ in range(2000):
        decision = decide(listener, get(), draw)
        assert isinstance(decision, Forward)
        counts[decision.cluster.cluster.name] += 1
    for i, weight in enumerate(weights):
        expected = 2000 * weight / sum(weights)
        assert abs(counts[f"c{i}"] - expected) <= 5 * max(expected, 1) ** 0.5 + 1
        assert weight or not counts[f"c{i}"]


@pytest.mark.parametrize(
    ("kind", "value", "path", "expected"),
    [
        (PathKind.PREFIX, "/old", "/old/x?y=1", "/new/x?y=1"),
        (PathKind.PREFIX, "/old", "/older", "/newer"),
        (PathKind.EXACT, "/old", "/old?y=1", "/new?y=1"),
        (PathKind.REGEX, "/o.*", "/other/x", "/new"),
    ],
)
def test_prefix_rewrite_replaces_what_the_route_matched(
    kind: PathKind, value: str, path: str, expected: str
) -> None:
    listener = view(to("a", match=RouteMatch(PathMatch(kind, value)), prefix_rewrite="/new"))
    decision = forward(listener, get(path))
    assert (decision.path, decision.path_rewritten) == (expected, True)


def test_regex_rewrite_leaves_the_query_alone() -> None:
    rewrite = RegexRewrite(r"/(\w+)/(\w+)", r"/\2/\1")
    assert forward(view(to("a", regex_rewrite=rewrite)), get("/a/b?q=/a/b")).path == "/b/a?q=/a/b"


def test_host_rewrite() -> None:
    decision = forward(view(to("a", host_rewrite="other:80")), get())
    assert (decision.authority, decision.host_rewritten) == ("other:80", True)


@pytest.mark.parametrize(("of_route", "expected"), [("route:80", "route:80"), (None, "own:80")])
def test_the_host_rewrite_of_a_route_goes_before_that_of_a_weighted_cluster(
    of_route: str | None, expected: str
) -> None:
    clusters = (WeightedCluster("a", 1, host_rewrite="own:80"),)
    route = Route("r", ANY, ForwardAction(clusters, host_rewrite=of_route))
    assert forward(view(route), get()).authority == expected


def test_of_a_header_that_comes_twice_a_value_takes_the_first() -> None:
    added = HeaderMutations(request_set=(HeaderOption("x-copy", "%REQ(x-m)%"),))
    headers = [("x-m", "one"), ("x-m", "two")]
    decision = forward(view(to("a", mutations=added)), get("/", *headers))
    assert ("x-copy", "one") in decision.request_headers(headers)


@pytest.mark.parametrize(
    ("action", "path", "location"),
    [
        (RedirectAction(host="b"), "/x?q=1", "http://b/x?q=1"),
        (RedirectAction(host="b", strip_query=True), "/x?q=1", "http://b/x"),
        (RedirectAction(path="/n"), "/x?q=1", "http://svc:8080/n?q=1"),
        (RedirectAction(path="/n?z=2"), "/x?q=1", "http://svc:8080/n?z=2"),
        (RedirectAction(https=True, port=8443), "/x", "https://svc:8443/x"),
        (RedirectAction(https=True), "/x", "https://svc:8080/x"),
        (RedirectAction(prefix_rewrite="/y"), "/x/z", "http://svc:8080/y/z"),
    ],
)
def test_redirects(action: RedirectAction, path: str, location: str) -> None:
    match = RouteMatch(PathMatch(PathKind.PREFIX, "/x"))
    answer = reply(view(Route("r", match, action)), get(path, authority="svc:8080"))
    assert answer.status == 301
    assert dict(answer.headers)["location"] == location
    assert answer.error is None


def test_the_old_default_port_goes_when_the_scheme_changes() -> None:
    listener = view(Route("r", ANY, RedirectAction(https=True)))
    answer = reply(listener, get("/", authority="svc:80"))
    assert dict(answer.headers)["location"] == "https://svc/"


def test_direct_response_for_http_and_for_grpc() -> None:
    listener = view(Route("r", ANY, DirectResponseAction(503, b"nope")))
    answer = reply(listener, get())
    assert (answer.status, answer.body, answer.grpc_code, answer.grpc_message) == (
        503, b"nope", 14, "nope",
    )  # fmt: skip
    assert reply(view(Route("r", ANY, DirectResponseAction(200, b"hi"))), get()).grpc_code == 2


def test_the_delay_comes_before_the_abort() -> None:
    fault = Fault(FaultDelay(7.0, ALWAYS), FaultAbort(ALWAYS, http_status=500))
    answer = reply(view(to("a", fault=fault)), get())
    assert (answer.delay, answer.status, answer.flag) == (7.0, 500, "FI")
    assert (answer.body, answer.grpc_code) == (b"fault filter abort", 2)


def test_a_grpc_abort_seen_over_http_is_a_200() -> None:
    # Seen on Envoy 1.40.
    answer = reply(view(to("a", fault=Fault(abort=FaultAbort(ALWAYS, grpc_status=5)))), get())
    assert (answer.status, answer.grpc_code) == (200, 5)


def test_a_fault_for_other_headers_or_clusters_leaves_the_call_alone() -> None:
    for fault in (
        Fault(abort=FaultAbort(ALWAYS, 500), headers=(JASON,)),
        Fault(abort=FaultAbort(ALWAYS, 500), upstream_cluster="other"),
        Fault(abort=FaultAbort(Fraction(0), 500)),
    ):
        forward(view(to("a", fault=fault)), get())


def test_the_fault_of_the_route_hides_that_of_the_filter() -> None:
    base = view(to("a", fault=Fault()))
    listener = ListenerView("l", base.route_config, base.clusters,
                            fault=Fault(abort=FaultAbort(ALWAYS, 500)))  # fmt: skip
    forward(listener, get())


def test_faults_controlled_by_headers() -> None:
    fault = Fault(FaultDelay(None, Fraction(50)), FaultAbort(ALWAYS))
    listener = view(to("a", fault=fault))
    assert forward(listener, get()).delay == 0
    assert forward(listener, get("/", ("x-envoy-fault-delay-request", "1500"))).delay == 1.5
    never = ("x-envoy-fault-delay-request-percentage", "0")
    assert forward(listener, get("/", ("x-envoy-fault-delay-request", "1500"), never)).delay == 0
    assert reply(listener, get("/", ("x-envoy-fault-abort-request", "418"))).status == 418
    assert reply(listener, get("/", ("x-envoy-fault-abort-grpc-request", "5"))).grpc_code == 5


def add(name: str, value: str, action: AppendAction = AppendAction.APPEND_OR_ADD) -> HeaderOption:
    return HeaderOption(name, value, action)


def test_header_actions() -> None:
    options = (
        add("x-append", "2"),
        add("x-absent", "new", AppendAction.ADD_IF_ABSENT),
        add("x-there", "new", AppendAction.ADD_IF_ABSENT),
        add("x-over", "new", AppendAction.OVERWRITE_OR_ADD),
        add("x-only-if", "new", AppendAction.OVERWRITE),
        add("x-empty", ""),
    )
    mutations = HeaderMutations(request_set=options, request_remove=("x-gone",))
    sent = [("x-append", "1"), ("x-there", "old"), ("X-Over", "old"), ("x-gone", "1")]
    decision = forward(view(to("a", mutations=mutations)), get("/", *sent))
    assert decision.changes_request
    assert not decision.changes_response
    assert decision.request_headers(sent) == [
        ("x-append", "1"),
        ("x-there", "old"),
        ("x-over", "new"),
        ("x-append", "2"),
        ("x-absent", "new"),
    ]


@pytest.mark.parametrize(("specific_wins", "value"), [(False, "global"), (True, "route")])
def test_the_level_applied_last_wins(specific_wins: bool, value: str) -> None:
    def sets(text: str) -> HeaderMutations:
        return HeaderMutations(response_set=(add("x", text, AppendAction.OVERWRITE_OR_ADD),))

    listener = view(
        to("a", mutations=sets("route")),
        mutations=sets("global"),
        most_specific_mutations_win=specific_wins,
    )
    assert forward(listener, get()).response_headers([("x", "old")]) == [("x", value)]


def test_operators_in_header_values() -> None:
    option = add("x-was", "100%% of %REQ(X-Who?:path)%")
    decision = forward(view(to("a", mutations=HeaderMutations((option,)))), get("/p"))
    assert decision.request_headers([]) == [("x-was", "100% of /p")]


def test_a_level_is_evaluated_before_it_is_written() -> None:
    # Seen on Envoy 1.40: conditions and values see the headers as they were before the level.
    level = HeaderMutations(
        (
            add("x-m", "one", AppendAction.OVERWRITE_OR_ADD),
            add("x-add", "%REQ(x-m)%", AppendAction.ADD_IF_ABSENT),
            add("x-add", "two", AppendAction.ADD_IF_ABSENT),
        )
    )
    decision = forward(view(to("a", mutations=level)), get("/", ("x-m", "old")))
    sent = decision.request_headers([("x-m", "old")])
    assert sent == [("x-m", "one"), ("x-add", "old"), ("x-add", "two")]


def test_operators_in_response_headers_see_the_request_as_sent() -> None:
    mutations = HeaderMutations(
        request_set=(add("x-q", "added"),),
        response_set=(add("x-sent", "%REQ(:path)% %REQ(:authority)% %REQ(x-q)%"),),
    )
    route = to("a", mutations=mutations, prefix_rewrite="/new", host_rewrite="other")
    decision = forward(view(route), get("/"))
    assert decision.response_headers([]) == [("x-sent", "/new other added")]


def test_answers_of_the_mesh_carry_the_routes_response_headers() -> None:
    # Seen on Envoy 1.40: faults and failures of forwarding routes too.
    mutations = HeaderMutations(response_set=(add("x-a", "b"),))
    aborting = Fault(abort=FaultAbort(ALWAYS, 418))
    assert ("x-a", "b") in reply(view(to("a", mutations=mutations, fault=aborting)), get()).headers
    decision = forward(view(to("a", mutations=mutations)), get())
    assert ("x-a", "b") in decision.reply(NoHealthyUpstream("none")).headers


# --- compiled gRPC methods -------------------------------------------------------------------

METHOD = "/pkg.Service/Get"


def test_a_method_with_one_route_has_a_static_decision() -> None:
    table = compile_method(view(to("a", timeout=2.0)), "svc:80", METHOD)
    assert table.static is not None
    assert (table.static.timeout, table.static.path) == (2.0, METHOD)
    assert not table.needs_request


def test_a_method_with_weights_needs_no_metadata() -> None:
    table = compile_method(view(to(("a", 1), ("b", 1))), "svc", METHOD)
    assert table.static is None
    assert not table.needs_request
    for number, name in [(0, "a"), (1 / 2**53, "b"), (4 / 2**53, "a")]:
        decision = table.decide(None, lambda number=number: number)  # type: ignore[misc]
        assert isinstance(decision, Forward)
        assert decision.cluster.cluster.name == name


_routes = st.lists(
    st.builds(
        lambda prefix, headers, clusters, fault, mutated: to(
            *clusters,
            match=RouteMatch(PathMatch(PathKind.PREFIX, prefix), headers=headers),
            fault=Fault(abort=FaultAbort(ALWAYS, 500)) if fault else None,
            mutations=HeaderMutations((add("x-a", "%REQ(end-user)%"),))
            if mutated
            else HeaderMutations(),
        ),
        st.sampled_from(["/", "/pkg.Service/", "/pkg.Service/Get", "/other"]),
        st.sampled_from([(), (JASON,)]),
        st.sampled_from([("a",), (("a", 3), ("b", 1)), ("gone",)]),
        st.booleans(),
        st.booleans(),
    ),
    max_size=5,
)


def _essence(decision: Any) -> tuple[Any, ...]:
    if isinstance(decision, Forward):
        sent = decision.request_headers([("end-user", "jason")])
        return ("forward", decision.cluster.cluster.name, decision.path, sent)
    return ("reply", decision.status, decision.flag)


@given(_routes, st.booleans(), st.floats(0, 1, exclude_max=True))
def test_a_compiled_method_decides_as_the_whole_view_does(
    routes: list[Route], jason: bool, number: float
) -> None:
    listener = view(*routes)
    headers = [("end-user", "jason")] if jason else []
    request = Request("POST", METHOD, authority="svc", headers=headers, grpc=True)
    table = compile_method(listener, "svc", METHOD)
    compiled = table.static or table.decide(request, lambda: number)
    assert _essence(compiled) == _essence(decide(listener, request, lambda: number))
