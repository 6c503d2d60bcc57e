"""Fields of rules, one by one: from Istio YAML over xDS to what the SDK decides for a call."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from typing import Any

import pytest

from controlplane.cli.look import view_of
from controlplane.model.resource import ConfigError
from controlplane.translate.node import Node
from controlplane.world import World
from meshsdk.call import Decision, Forward, Passthrough, Reply, Request, decide
from meshsdk.model import ListenerView
from meshsdk.xds.naming import ByName
from tests.support.controlplane import make_node, make_world, service, workload

BASE = (
    service("store", "http:8080")
    + service("two", "http:80", "grpc:81")
    + service("files", "tcp:9000", "https:443")
    + workload("a", "10.0.0.1", "store", version="v1", ports={"http": 7001})
    + workload("b", "10.0.0.2", "store", version="v2", ports={"http": 7002})
    + workload("c", "10.0.0.3", "two", ports={"http": 7003, "grpc": 7004})
    + workload("d", "10.0.0.4", "files", ports={"tcp": 7005, "https": 7006})
)
SUBSETS = {
    "host": "store",
    "subsets": [{"name": name, "labels": {"version": name}} for name in ("v1", "v2")],
}
QUALIFIED = "store.default:8080"
STORE = {"destination": {"host": "store"}}
TWO = {"destination": {"host": "two", "port": {"number": 80}}}


def rule(kind: str, spec: Any, name: str = "rule", namespace: str = "default") -> str:
    document = {
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
    return json.dumps(document) + "\n---\n"


def store(*http: dict[str, Any], **fields: Any) -> str:
    """A VirtualService of the host `store`."""
    return rule("VirtualService", {"hosts": ["store"], "http": list(http), **fields})


def asked(
    text: str,
    path: str = "/",
    *,
    authority: str = "store:8080",
    method: str = "GET",
    headers: dict[str, str] | None = None,
    node: Node | None = None,
) -> Decision:
    """What the SDK of a caller decides under `BASE` and this configuration."""
    view = viewed(text, authority, node)
    pairs = list((headers or {}).items())
    return decide(view, Request(method, path, authority=authority, headers=pairs), lambda: 0.5)


def taken(world: World, node: Node, name: str) -> ListenerView:
    """The listener of that name as the SDK sees it, which refuses nothing of it."""
    refused: dict[str, str] = {}
    view = view_of(world, node, name, refused)
    assert not refused
    return view


def viewed(text: str, authority: str = "store:8080", node: Node | None = None) -> ListenerView:
    """The listener of an authority as the SDK of a caller sees it."""
    node = node or make_node()
    host, _, port = authority.rpartition(":")
    name = ByName(node.namespace, "cluster.local").listener_name(host, int(port))
    return taken(make_world(BASE + text), node, name)


def drawn(
    text: str, authority: str = "store:8080", headers: dict[str, str] | None = None
) -> dict[str, list[Forward]]:
    """1000 decisions, by where they lead."""
    view = viewed(text, authority)
    pairs = list((headers or {}).items())
    numbers = random.Random(7)
    found: dict[str, list[Forward]] = defaultdict(list)
    for _ in range(1000):
        request = Request("GET", "/", authority=authority, headers=pairs)
        decision = decide(view, request, numbers.random)
        assert isinstance(decision, Forward), decision
        found[where(decision)].append(decision)
    return found


def inside(count: int, percent: float) -> bool:
    """Whether a count of 1000 draws is what a share leads to: five deviations to each side."""
    share = percent / 100
    return abs(count - 1000 * share) <= 5 * (1000 * share * (1 - share)) ** 0.5


def sent(text: str, path: str = "/", **how: Any) -> Forward:
    decision = asked(text, path, **how)
    assert isinstance(decision, Forward), decision
    return decision


def answered(text: str, path: str = "/", **how: Any) -> Reply:
    decision = asked(text, path, **how)
    assert isinstance(decision, Reply), decision
    return decision


def where(decision: Decision) -> str:
    """`service` or `service/subset` of the cluster that a call is sent to."""
    assert isinstance(decision, Forward), decision
    _, _, subset, host = decision.cluster.cluster.name.split("|")
    return "/".join(filter(None, (host.partition(".")[0], subset)))


# --- http[].match[] --------------------------------------------------------------------------

PLACES = {
    # place in the match: (the field with this string match, a request by this value)
    "uri": (lambda want: {"uri": want}, lambda value: {"path": value}),
    "method": (lambda want: {"method": want}, lambda value: {"method": value}),
    "authority": (lambda want: {"authority": want}, lambda value: {"authority": value}),
    "headers{}": (
        lambda want: {"headers": {"x-a": want}},
        lambda value: {"headers": {"x-a": value}},
    ),
    "withoutHeaders{}": (
        lambda want: {"withoutHeaders": {"x-a": want}},
        lambda value: {"headers": {"x-a": value}},
    ),
    "queryParams{}": (
        lambda want: {"queryParams": {"q": want}},
        lambda value: {"path": f"/?q={value}"},
    ),
}
VALUES = {
    # place: (exact, prefix, regex) and two requests: the first holds, the second does not
    "uri": ("/abc", "/ab", "/a.c", "/abc", "/xyz"),
    "method": ("PUT", "PU", "P.T", "PUT", "GET"),
    "authority": ("store:8080", "store:", "sto.e:8080", "store:8080", "store.default:8080"),
    "headers{}": ("abc", "ab", "a.c", "abc", "xyz"),
    "withoutHeaders{}": ("xyz", "xy", "x.z", "abc", "xyz"),
    "queryParams{}": ("abc", "ab", "a.c", "abc", "xyz"),
}


@pytest.mark.parametrize("kind", ["exact", "prefix", "regex"])
@pytest.mark.parametrize("place", PLACES)
def test_string_matches(place: str, kind: str) -> None:
    """Each kind of string match at each place of a match."""
    field, request = PLACES[place]
    *wanted, holds, fails = VALUES[place]
    value = wanted[("exact", "prefix", "regex").index(kind)]
    text = store({"match": [field({kind: value})], "route": [TWO]}, {"route": [STORE]})
    assert where(asked(text, **request(holds))) == "two"
    assert where(asked(text, **request(fails))) == "store"


@pytest.mark.parametrize("kind", ["exact", "prefix", "regex"])
def test_scheme_matches(kind: str) -> None:
    """Calls of the mesh that rules look at are plain HTTP; `https://` is opaque."""
    for value, expected in {"http": "two", "ftp": "store"}.items():
        text = store({"match": [{"scheme": {kind: value}}], "route": [TWO]}, {"route": [STORE]})
        assert where(asked(text)) == expected


@pytest.mark.parametrize(
    ("match", "holds", "fails"),
    [
        ({"uri": {"prefix": "/AB"}, "ignoreUriCase": True}, {"path": "/abc"}, {"path": "/xbc"}),
        ({"headers": {"x-a": {}}}, {"headers": {"x-a": "any"}}, {}),
        (
            {"uri": {"prefix": "/a"}, "headers": {"x-a": {"exact": "1"}}},
            {"path": "/a", "headers": {"x-a": "1"}},
            {"path": "/a"},
        ),
        (
            {"sourceLabels": {"app": "x"}},
            {"node": make_node(LABELS={"app": "x"})},
            {"node": make_node(LABELS={"app": "y"})},
        ),
        ({"sourceNamespace": "default"}, {}, {"node": make_node("prod"), "authority": QUALIFIED}),
    ],
)
def test_other_conditions(match: Any, holds: Any, fails: Any) -> None:
    text = store({"match": [match], "route": [TWO]}, {"route": [STORE]})
    assert where(asked(text, **holds)) == "two"
    assert where(asked(text, **fails)) == "store"


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ({"port": 8080}, "two"),
        ({"port": 8081}, "store"),
        ({"gateways": ["mesh"]}, "two"),
        ({"gateways": ["outer"]}, "store"),
    ],
)
def test_conditions_known_before_a_call(match: Any, expected: str) -> None:
    text = store({"match": [match], "route": [TWO]}, {"route": [STORE]})
    assert where(asked(text)) == expected


def test_one_of_several_matches_is_enough_and_names_the_route() -> None:
    matches = [{"name": "a", "uri": {"exact": "/a"}}, {"name": "b", "uri": {"exact": "/b"}}]
    text = store({"name": "r", "match": matches, "route": [TWO]}, {"route": [STORE]})
    assert sent(text, "/a").route.name == "r.a"
    assert sent(text, "/b").route.name == "r.b"
    assert where(asked(text, "/c")) == "store"


# --- http[]: where to ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("destination", "cluster", "target"),
    [
        ({"host": "store"}, "outbound|8080||store", "10.0.0.1:7001"),
        ({"host": "store", "subset": "v2"}, "outbound|8080|v2|store", "10.0.0.2:7002"),
        ({"host": "two", "port": {"number": 81}}, "outbound|81||two", "10.0.0.3:7004"),
    ],
)
def test_destinations(destination: Any, cluster: str, target: str) -> None:
    text = rule("DestinationRule", SUBSETS) + store({"route": [{"destination": destination}]})
    decision = sent(text)
    assert decision.cluster.cluster.name == f"{cluster}.default.svc.cluster.local"
    assert target in {state.target for state in decision.cluster.endpoints}


def test_weights_and_headers_of_destinations() -> None:
    heads = {
        "request": {"set": {"x-to": "two"}, "add": {"x-m": "2"}, "remove": ["x-c"]},
        "response": {"set": {"x-by": "two"}, "add": {"x-n": "2"}, "remove": ["x-d"]},
    }
    text = store({"route": [{**STORE, "weight": 25}, {**TWO, "weight": 75, "headers": heads}]})
    before = [("x-c", "1"), ("x-d", "1"), ("x-m", "1"), ("x-n", "1")]
    draws = drawn(text, headers=dict(before))
    assert inside(len(draws["store"]), 25)
    assert inside(len(draws["two"]), 75)
    first, second = draws["store"][0], draws["two"][0]
    assert first.request_headers(before) == first.response_headers(before) == before
    got = second.request_headers(before)
    assert sorted(got) == [("x-d", "1"), ("x-m", "1"), ("x-m", "2"), ("x-n", "1"), ("x-to", "two")]
    got = second.response_headers(before)
    assert sorted(got) == [("x-by", "two"), ("x-c", "1"), ("x-m", "1"), ("x-n", "1"), ("x-n", "2")]


def test_headers_of_a_route() -> None:
    operations = {
        "set": {"x-set": "new"},
        "add": {"x-add": "more"},
        "remove": ["x-gone"],
    }
    text = store({"route": [TWO], "headers": {"request": operations, "response": operations}})
    before = [("x-set", "old"), ("x-add", "some"), ("x-gone", "1"), ("x-kept", "1")]
    after = [("x-add", "more"), ("x-add", "some"), ("x-kept", "1"), ("x-set", "new")]
    decision = sent(text, headers=dict(before))
    assert sorted(decision.request_headers(before)) == after
    assert sorted(decision.response_headers(before)) == after


@pytest.mark.parametrize(
    ("rewrite", "path", "authority"),
    [
        ({"uri": "/new/"}, "/new/b?q=1", "store:8080"),
        ({"authority": "other"}, "/old/b?q=1", "other"),
        ({"uriRegexRewrite": {"match": "^/(old)/(.*)", "rewrite": r"/\2/\1"}}, "/b/old?q=1",
         "store:8080"),
    ],
)  # fmt: skip
def test_rewrites(rewrite: Any, path: str, authority: str) -> None:
    text = store({"match": [{"uri": {"prefix": "/old/"}}], "route": [TWO], "rewrite": rewrite})
    decision = sent(text, "/old/b?q=1")
    assert (decision.path, decision.authority) == (path, authority)


@pytest.mark.parametrize(
    ("redirect", "status", "location"),
    [
        ({"uri": "/new"}, 301, "http://store:8080/new?q=1"),
        ({"prefixRewrite": "/new/"}, 301, "http://store:8080/new/b?q=1"),
        ({"authority": "other"}, 301, "http://other/old/b?q=1"),
        ({"scheme": "https"}, 301, "https://store:8080/old/b?q=1"),
        ({"scheme": "https", "port": 8443}, 301, "https://store:8443/old/b?q=1"),
        ({"authority": "other", "derivePort": "FROM_REQUEST_PORT"}, 301,
         "http://other:8080/old/b?q=1"),
        ({"uri": "/new", "redirectCode": 308}, 308, "http://store:8080/new?q=1"),
    ],
)  # fmt: skip
def test_redirects(redirect: Any, status: int, location: str) -> None:
    text = store({"match": [{"uri": {"prefix": "/old/"}}], "redirect": redirect})
    reply = answered(text, "/old/b?q=1")
    assert reply.status == status
    assert dict(reply.headers)["location"] == location


@pytest.mark.parametrize(
    ("body", "expected"),
    [({"string": "closed"}, b"closed"), ({"bytes": "Y2xvc2Vk"}, b"closed"), (None, b"")],
)
def test_direct_responses(body: Any, expected: bytes) -> None:
    response = {"status": 418} | ({"body": body} if body else {})
    reply = answered(store({"directResponse": response}))
    assert (reply.status, reply.body) == (418, expected)


def test_timeout() -> None:
    decision = sent(store({"route": [TWO], "timeout": "1.5s"}))
    assert (decision.timeout, decision.max_grpc_timeout) == (1.5, 1.5)
    assert sent(store({"route": [TWO]})).timeout is None


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [
        ({"fixedDelay": "7s", "percentage": {"value": 60}}, 7),
        ({"fixedDelay": "7s", "percentage": {"value": 40}}, 0),
        ({"fixedDelay": "7s", "percent": 60}, 7),
        ({"fixedDelay": "7s"}, 0),
    ],
)
def test_delays(delay: Any, seconds: float) -> None:
    assert sent(store({"route": [TWO], "fault": {"delay": delay}})).delay == seconds


@pytest.mark.parametrize(
    ("abort", "status", "grpc_code"),
    [
        ({"httpStatus": 418, "percentage": {"value": 60}}, 418, 2),
        ({"grpcStatus": "UNAVAILABLE", "percentage": {"value": 60}}, 200, 14),
    ],
)
def test_aborts(abort: Any, status: int, grpc_code: int) -> None:
    reply = answered(store({"route": [TWO], "fault": {"abort": abort}}))
    assert (reply.status, reply.grpc_code) == (status, grpc_code)
    never = abort | {"percentage": {"value": 40}}
    assert where(asked(store({"route": [TWO], "fault": {"abort": never}}))) == "two"


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [("delay", "exponentialDelay", "1s"), ("abort", "http2Error", "REFUSED_STREAM")],
)
def test_faults_that_istio_has_not_are_refused(kind: str, field: str, value: str) -> None:
    fault = {kind: {field: value, "percentage": {"value": 100}}}
    with pytest.raises(ConfigError, match=f"fault.{kind}.{field}: is not supported"):
        asked(store({"route": [TWO], "fault": fault}))


def test_delegates() -> None:
    root = {"match": [{"uri": {"prefix": "/a"}}], "delegate": {"name": "leaf", "namespace": "prod"}}
    to = [{"destination": {"host": "two.default.svc.cluster.local", "port": {"number": 80}}}]
    leaf = {"http": [{"match": [{"uri": {"prefix": "/a/b"}}], "route": to}]}
    here = rule("VirtualService", leaf, name="leaf")
    there = rule("VirtualService", leaf, name="leaf", namespace="prod")
    text = store(root, {"route": [STORE]})
    assert where(asked(text + there, "/a/b")) == "two"
    assert where(asked(text + there, "/a")) == "store"
    assert where(asked(text + here, "/a/b")) == "store"  # not that namespace


# --- http[]: mirrors and CORS ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "percent"),
    [
        ({"mirror": TWO["destination"]}, 100),
        ({"mirror": TWO["destination"], "mirrorPercentage": {"value": 25}}, 25),
        ({"mirror": TWO["destination"], "mirrorPercent": 25}, 25),
        ({"mirror": TWO["destination"], "mirror_percent": 25}, 25),
        ({"mirrors": [TWO]}, 100),
        ({"mirrors": [{**TWO, "percentage": {"value": 25}}]}, 25),
    ],
)
def test_mirrors(fields: Any, percent: int) -> None:
    copies = [
        mirror.cluster.cluster.name
        for forward in drawn(store({"route": [STORE], **fields}))["store"]
        for mirror in forward.mirrors
    ]
    assert set(copies) == {"outbound|80||two.default.svc.cluster.local"}
    assert inside(len(copies), percent)


@pytest.mark.parametrize("field", ["mirror", "mirrors"])
def test_subsets_are_mirrored_to(field: str) -> None:
    subset = {"host": "store", "subset": "v2"}
    value: Any = subset if field == "mirror" else [TWO, {"destination": subset}]
    text = rule("DestinationRule", SUBSETS) + store({"route": [STORE], field: value})
    found = [mirror.cluster.cluster.name for mirror in sent(text).mirrors]
    assert found[-1] == "outbound|8080|v2|store.default.svc.cluster.local"
    assert len(found) == (1 if field == "mirror" else 2)


CORS = {
    "allowOrigins": [{"exact": "https://a.example"}, {"prefix": "http://b"}, {"regex": "c.*"}],
    "allowMethods": ["GET", "PUT"],
    "allowHeaders": ["x-a"],
    "exposeHeaders": ["x-b"],
    "allowCredentials": True,
    "maxAge": "1h",
}


@pytest.mark.parametrize(
    ("fields", "origin", "allowed"),
    [
        (CORS, "https://a.example", True),
        (CORS, "http://b.example", True),
        (CORS, "c.example", True),
        (CORS, "https://d.example", False),
        ({"allowOrigin": ["https://d.example"]}, "https://d.example", True),
        ({"allowOrigin": ["https://d.example"]}, "https://a.example", False),
    ],
)
def test_cors(fields: Any, origin: str, allowed: bool) -> None:
    """What the answer of the service gets."""
    got = dict(sent(store({"route": [TWO], "corsPolicy": fields}), headers={"origin": origin})
               .response_headers([]))  # fmt: skip
    assert got.get("access-control-allow-origin") == (origin if allowed else None)
    if fields is CORS and allowed:
        assert got["access-control-expose-headers"] == "x-b"
        assert got["access-control-allow-credentials"] == "true"


def test_preflights() -> None:
    asks = {"origin": "https://a.example", "access-control-request-method": "PUT"}
    reply = answered(store({"route": [TWO], "corsPolicy": CORS}), method="OPTIONS", headers=asks)
    assert reply.status == 200
    assert dict(reply.headers) == {
        "access-control-allow-origin": "https://a.example",
        "access-control-allow-credentials": "true",
        "access-control-allow-methods": "GET,PUT",
        "access-control-allow-headers": "x-a",
        "access-control-expose-headers": "x-b",  # Envoy says so here too
        "access-control-max-age": "3600",
    }


@pytest.mark.parametrize(("how", "forwarded"), [("FORWARD", True), ("IGNORE", False), ("", True)])
def test_preflights_of_others(how: str, forwarded: bool) -> None:
    asks = {"origin": "https://d.example", "access-control-request-method": "PUT"}
    policy = CORS | ({"unmatchedPreflights": how} if how else {})
    text = store({"route": [TWO], "corsPolicy": policy})
    assert isinstance(asked(text, method="OPTIONS", headers=asks), Forward) is forwarded


# --- the rule itself -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "namespace", "expected"),
    [
        ({}, "default", "two"),
        ({}, "prod", "two"),
        ({"exportTo": ["."]}, "default", "two"),
        ({"exportTo": ["."]}, "prod", "store"),
        ({"gateways": ["outer"]}, "default", "store"),
        ({"gateways": ["outer", "mesh"]}, "default", "two"),
    ],
)
def test_whom_a_rule_speaks_to(fields: Any, namespace: str, expected: str) -> None:
    text = store({"route": [TWO]}, **fields)
    decision = asked(text, authority="store.default:8080", node=make_node(namespace))
    assert where(decision) == expected


def test_hosts() -> None:
    text = rule("VirtualService", {"hosts": ["*.example.com", "two"], "http": [{"route": [STORE]}]})
    assert where(asked(text, authority="two:80")) == "store"
    assert where(asked(text, authority="a.example.com:80")) == "store"
    assert isinstance(asked(text, authority="example.com:80"), Passthrough)


# --- tls[] and tcp[] -------------------------------------------------------------------------


def connection(text: str, port: int, **how: Any) -> str:
    return where(asked(text, authority=f"files:{port}", **how))


def files(**fields: Any) -> str:
    return rule("VirtualService", {"hosts": ["files.default.svc.cluster.local"], **fields})


_LAYER4 = [
    ({"port": 0}, True),
    ({"gateways": ["mesh"]}, True),
    ({"gateways": ["outer"]}, False),
    ({"sourceLabels": {"app": "x"}}, True),
    ({"sourceLabels": {"app": "y"}}, False),
    ({"sourceNamespace": "default"}, True),
    ({"sourceNamespace": "prod"}, False),
    ({"destinationSubnets": ["10.9.0.0/16"]}, True),
    ({"destinationSubnets": ["10.8.0.0/16"]}, False),
]
AT = "spec:\n  clusterIP: 10.9.0.1\n"
"""The address of the service `files`, for rules by subnet."""


@pytest.mark.parametrize(("match", "holds"), [*_LAYER4, ({"port": 1}, False)])
@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_layer_4_matches(kind: str, match: Any, holds: bool) -> None:
    port = 9000 if kind == "tcp" else 443
    names = {"sniHosts": ["files.default.svc.cluster.local"]} if kind == "tls" else {}
    if match.get("port") == 0:
        match = {"port": port}
    text = files(**{kind: [{"match": [{**match, **names}], "route": [TWO]}]})
    node = make_node(LABELS={"app": "x"})
    name = ByName("default", "cluster.local").listener_name("files", port)
    base = BASE.replace("spec:\n  selector: {app: files}", f"{AT}  selector: {{app: files}}")
    view = taken(make_world(base + text), node, name)
    request = Request("GET", "/", authority=f"files:{port}")
    assert where(decide(view, request, lambda: 0.5)) == ("two" if holds else "files")


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["*.default.svc.cluster.local"], "two"), (["files.prod.svc.cluster.local"], "files")],
)
def test_sni_hosts(names: list[str], expected: str) -> None:
    text = files(hosts=["files", "*.svc.cluster.local"],
                 tls=[{"match": [{"sniHosts": names}], "route": [TWO]}])  # fmt: skip
    assert connection(text, 443) == expected


@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_layer_4_destinations(kind: str) -> None:
    port = 9000 if kind == "tcp" else 443
    match = [{"sniHosts": ["files.default.svc.cluster.local"]}] if kind == "tls" else [{}]
    subset = {"host": "store", "subset": "v2", "port": {"number": 8080}}
    targets = [{**TWO, "weight": 25}, {"destination": subset, "weight": 75}]
    text = rule("DestinationRule", SUBSETS) + files(**{kind: [{"match": match, "route": targets}]})
    draws = drawn(text, authority=f"files:{port}")
    assert inside(len(draws["two"]), 25)
    assert inside(len(draws["store/v2"]), 75)
