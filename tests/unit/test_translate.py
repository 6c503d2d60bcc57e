"""Istio rules to xDS: each field means there what it means in Istio; our decoders take it."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from envoy.config.route.v3 import route_components_pb2 as rc
from google.protobuf import json_format

from controlplane.model.decode import decode
from controlplane.model.registry import Health
from controlplane.model.traffic import Headers
from controlplane.translate import actions
from controlplane.translate import resources as xds
from controlplane.translate.filters import grpc_code
from controlplane.translate.node import Dialect, Node, Relevant
from controlplane.translate.relevance import relevant
from controlplane.translate.scope import ClusterName, Scope, split_authority
from controlplane.world import World
from meshsdk.xds.decode import DECODERS
from tests.support.controlplane import make_node, make_world, service, workload

HOST = "store.default.svc.cluster.local"
ROUTE = f"outbound|8080||{HOST}"
BASE = (
    service("store", "http:8080")
    + service("two", "http:80", "grpc:81")
    + service("bytes", "tcp:9000", "https:443")
    + workload("a", "10.0.0.1", "store", version="v1", extra=["locality: east/z1/r1", "weight: 3"])
    + workload("b", "10.0.0.2", "store", version="v2")
)


def rule(kind: str, spec: dict[str, Any], name: str = "store", namespace: str = "default") -> str:
    document = {
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
    return json.dumps(document) + "\n---\n"


TO_STORE = {"route": [{"destination": {"host": "store"}}]}


def world_of(*http: dict[str, Any], extra: str = "") -> World:
    text = rule("VirtualService", {"hosts": ["store"], "http": list(http)}) if http else ""
    return make_world(BASE + text + extra)


def policy(**traffic: Any) -> str:
    return rule("DestinationRule", {"host": "store", **traffic})


def as_dict(message: Any) -> dict[str, Any]:
    assert message is not None
    found: dict[str, Any] = json_format.MessageToDict(message)
    return found


def routes(
    *http: dict[str, Any], sdk: bool = True, extra: str = "", node: Node | None = None
) -> list[dict[str, Any]]:
    """The routes of the store's first virtual host; the whole must pass our own decoder."""
    world = world_of(*http, extra=extra)
    message = xds.route(world, node or make_node(sdk=sdk), ROUTE)
    assert message is not None
    decoder = DECODERS[xds.RDS]
    decoder.decode(decoder.parse(message.SerializeToString()), [])
    listed: list[dict[str, Any]] = as_dict(message)["virtualHosts"][0]["routes"]
    return listed


def one(sdk: bool = True, extra: str = "", **fields: Any) -> dict[str, Any]:
    (route,) = routes({**TO_STORE, **fields}, sdk=sdk, extra=extra)
    return route


def cluster(traffic: dict[str, Any] | None = None, *, sdk: bool = True, subset: str = "") -> Any:
    world = make_world(BASE + (policy(**traffic) if traffic else ""))
    return xds.cluster(world, make_node(sdk=sdk), str(ClusterName(8080, subset, HOST)))


def notes(type_url: str, name: str, world: World) -> tuple[str, ...]:
    return xds.make(world, make_node(sdk=False).variant(Relevant()), type_url, name).notes


# --- matches ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ({"uri": {"exact": "/a"}}, {"path": "/a"}),
        ({"uri": {"prefix": "/a"}}, {"prefix": "/a"}),
        ({"uri": {"regex": "/a.*"}}, {"safeRegex": {"regex": "/a.*"}}),
        (
            {"uri": {"prefix": "/a"}, "ignoreUriCase": True},
            {"prefix": "/a", "caseSensitive": False},
        ),
        (
            {"headers": {"x": {"exact": "1"}}},
            {"prefix": "/", "headers": [{"name": "x", "stringMatch": {"exact": "1"}}]},
        ),
        (
            {"headers": {"x": {}}},
            {"prefix": "/", "headers": [{"name": "x", "presentMatch": True}]},
        ),
        (
            {"withoutHeaders": {"x": {"prefix": "1"}}},
            {
                "prefix": "/",
                "headers": [
                    {
                        "name": "x",
                        "stringMatch": {"prefix": "1"},
                        "invertMatch": True,
                        "treatMissingHeaderAsEmpty": True,
                    }
                ],
            },
        ),
        (
            {"withoutHeaders": {"x": {}}},
            {
                "prefix": "/",
                "headers": [{"name": "x", "presentMatch": True, "invertMatch": True}],
            },
        ),
        (
            {"queryParams": {"q": {"exact": "1"}, "p": {}}},
            {
                "prefix": "/",
                "queryParameters": [
                    {"name": "p", "presentMatch": True},
                    {"name": "q", "stringMatch": {"exact": "1"}},
                ],
            },
        ),
        (  # Envoy refuses an empty prefix
            {"queryParams": {"q": {"prefix": ""}}},
            {"prefix": "/", "queryParameters": [{"name": "q", "presentMatch": True}]},
        ),
        (
            {"method": {"exact": "GET"}, "scheme": {"exact": "http"}},
            {
                "prefix": "/",
                "headers": [
                    {"name": ":method", "stringMatch": {"exact": "GET"}},
                    {"name": ":scheme", "stringMatch": {"exact": "http"}},
                ],
            },
        ),
        (
            {"authority": {"prefix": "st"}},
            {
                "prefix": "/",
                "headers": [{"name": ":authority", "stringMatch": {"prefix": "st"}}],
            },
        ),
        ({"port": 8080}, {"prefix": "/"}),
        ({"gateways": ["mesh"]}, {"prefix": "/"}),
        ({"sourceNamespace": "default"}, {"prefix": "/"}),
    ],
)
def test_matches(match: dict[str, Any], expected: dict[str, Any]) -> None:
    (first, *_) = routes({**TO_STORE, "match": [match], "name": "r"})
    assert first["name"] == "r"
    assert first["match"] == expected


@pytest.mark.parametrize(
    "match",
    [
        {"port": 9999},
        {"gateways": ["default/gateway"]},
        {"sourceNamespace": "elsewhere"},
        {"sourceLabels": {"app": "x"}},
    ],
)
def test_rules_that_never_hold_for_this_caller_are_left_out(match: dict[str, Any]) -> None:
    (only,) = routes({**TO_STORE, "match": [match], "name": "r"})
    assert only["name"] == "default"


def test_a_gateway_in_the_match_switches_the_source_off() -> None:
    match = {"gateways": ["mesh"], "sourceNamespace": "elsewhere"}
    (only,) = routes({**TO_STORE, "match": [match], "name": "r"})
    assert only["name"] == "r"


def test_source_labels() -> None:
    match = {"sourceLabels": {"app": "x"}}
    node = make_node(LABELS={"app": "x", "other": "y"})
    first, _ = routes({**TO_STORE, "match": [match], "name": "r"}, TO_STORE, node=node)[:1] * 2
    assert first["name"] == "r"
    world = world_of({**TO_STORE, "match": [match]})
    assert relevant(world) == Relevant(frozenset({"app"}))
    assert node.variant(relevant(world)).labels == {("app", "x")}


def left_out(*texts: str, node: Node | None = None) -> tuple[str, ...]:
    world = make_world(BASE, *texts)
    variant = (node or make_node()).variant(relevant(world))
    return xds.make(world, variant, xds.RDS, ROUTE).left_out


@pytest.mark.parametrize(
    ("match", "why"),
    [
        ({"port": 81}, "it is for port 81, not 8080"),
        ({"gateways": ["gw"]}, "it is for gateways default/gw"),
        ({"sourceNamespace": "prod"}, "it is for callers in prod, not in default"),
        ({"sourceLabels": {"app": "x"}}, "the caller lacks the labels app=x"),
    ],
)
def test_rules_that_are_left_out_are_explained(match: dict[str, Any], why: str) -> None:
    http = [{**TO_STORE, "match": [{"uri": {"prefix": "/a"}}, match]}, TO_STORE]
    (line,) = left_out(rule("VirtualService", {"hosts": ["store"], "http": http}))
    assert line.startswith("VirtualService default/store http[0].match[1]: no, ")
    assert why in line


def test_of_several_rules_the_first_that_speaks_of_the_port_counts() -> None:
    def to(host: str, name: str, **more: Any) -> str:
        http = {"route": [{"destination": {"host": host}}], **more}
        return rule("VirtualService", {"hosts": ["store"], "http": [http]}, name)

    def target(*texts: str) -> str:
        message = as_dict(xds.route(make_world(BASE, *texts), make_node(), ROUTE))
        found: str = message["virtualHosts"][0]["routes"][0]["route"]["cluster"]
        return found.rpartition("|")[2].partition(".")[0]

    first, second = to("store", "a"), to("bytes", "b")
    assert target(first, second) == "store"
    (line,) = left_out(first, second)
    assert line.startswith("VirtualService default/b: no, VirtualService default/a comes before")
    silent = to("store", "a", match=[{"port": 99}])
    assert target(silent, second) == "bytes"


def test_a_catch_all_ends_the_list() -> None:
    listed = routes(
        {**TO_STORE, "name": "a", "match": [{"uri": {"exact": "/a"}}, {"uri": {"prefix": "/"}}]},
        {**TO_STORE, "name": "b"},
    )
    assert [route["name"] for route in listed] == ["a", "a"]


def test_names_of_matches() -> None:
    match = [{"name": "m", "uri": {"exact": "/a"}}]
    assert routes({**TO_STORE, "name": "r", "match": match})[0]["name"] == "r.m"


# --- actions ---------------------------------------------------------------------------------


def test_weights() -> None:
    targets = [
        {"destination": {"host": "store"}, "weight": 30},
        {"destination": {"host": "two", "port": {"number": 80}}, "weight": 70},
        {"destination": {"host": "nowhere"}, "weight": 0},
    ]
    (route,) = routes({"route": targets})
    assert route["route"]["weightedClusters"]["clusters"] == [
        {"name": ROUTE, "weight": 30},
        {"name": "outbound|80||two.default.svc.cluster.local", "weight": 70},
    ]


def test_one_destination_gets_all_whatever_its_weight() -> None:
    targets = [
        {"destination": {"host": "store"}, "weight": 0},
        {"destination": {"host": "two", "port": {"number": 80}}, "weight": 100},
    ]
    (route,) = routes({"route": targets})
    assert route["route"]["cluster"] == "outbound|80||two.default.svc.cluster.local"


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        ({"host": "store"}, ROUTE),
        ({"host": "store.default.svc.cluster.local", "subset": "v1"},
         f"outbound|8080|v1|{HOST}"),
        ({"host": "two"}, "outbound|8080||two.default.svc.cluster.local"),
        ({"host": "two", "port": {"number": 81}}, "outbound|81||two.default.svc.cluster.local"),
        ({"host": "nowhere"}, "outbound|8080||nowhere.default.svc.cluster.local"),
    ],
)  # fmt: skip
def test_the_cluster_of_a_destination(destination: dict[str, Any], expected: str) -> None:
    (route,) = routes({"route": [{"destination": destination}]})
    assert route["route"]["cluster"] == expected


@pytest.mark.parametrize(
    ("rewrite", "expected"),
    [
        ({"uri": "/v2"}, {"prefixRewrite": "/v2"}),
        ({"authority": "other"}, {"hostRewriteLiteral": "other"}),
        (
            {"uriRegexRewrite": {"match": "^/a/(.*)", "rewrite": r"/\1"}},
            {"regexRewrite": {"pattern": {"regex": "^/a/(.*)"}, "substitution": r"/\1"}},
        ),
    ],
)
def test_rewrites(rewrite: dict[str, Any], expected: dict[str, Any]) -> None:
    assert expected.items() <= one(rewrite=rewrite)["route"].items()


@pytest.mark.parametrize(
    ("redirect", "expected"),
    [
        ({"uri": "/new"}, {"pathRedirect": "/new"}),
        (
            {"authority": "a", "redirectCode": 308},
            {"hostRedirect": "a", "responseCode": "PERMANENT_REDIRECT"},
        ),
        ({"scheme": "https", "port": 8443}, {"schemeRedirect": "https", "portRedirect": 8443}),
        ({"scheme": "https", "port": 443}, {"schemeRedirect": "https"}),
        ({"derivePort": "FROM_REQUEST_PORT"}, {"portRedirect": 8080}),
        ({"derivePort": "FROM_PROTOCOL_DEFAULT", "uri": "/"}, {"pathRedirect": "/"}),
    ],
)
def test_redirects(redirect: dict[str, Any], expected: dict[str, Any]) -> None:
    (route,) = routes({"redirect": redirect})
    assert route["redirect"] == expected


def test_a_direct_response() -> None:
    (route,) = routes({"directResponse": {"status": 503, "body": {"string": "closed"}}})
    assert route["directResponse"]["status"] == 503
    assert route["directResponse"]["body"] == {"inlineBytes": "Y2xvc2Vk"}


def test_headers_of_rule_and_destination() -> None:
    target = {
        "destination": {"host": "store"},
        "headers": {"request": {"set": {"x-b": "2", "Host": "below"}}},
    }
    (route,) = routes(
        {
            "headers": {
                "request": {"set": {"x-a": "1"}, "add": {"x-c": "3"}, "remove": ["x-d"]},
                "response": {"add": {"x-e": "4"}},
            },
            "route": [target],
        }
    )
    added = route["requestHeadersToAdd"]
    assert [(item["header"]["key"], item.get("appendAction", "APPEND")) for item in added] == [
        ("x-a", "OVERWRITE_IF_EXISTS_OR_ADD"),
        ("x-c", "APPEND"),
        ("x-b", "OVERWRITE_IF_EXISTS_OR_ADD"),
    ]
    assert route["requestHeadersToRemove"] == ["x-d"]
    assert route["responseHeadersToAdd"][0]["header"] == {"key": "x-e", "value": "4"}
    assert route["route"]["hostRewriteLiteral"] == "below"


def test_the_timeout_also_limits_the_callers_own_deadline() -> None:
    assert one(timeout="5s")["route"]["timeout"] == "5s"
    assert one(timeout="5s")["route"]["maxStreamDuration"] == {"grpcTimeoutHeaderMax": "5s"}
    assert one()["route"]["timeout"] == "0s"
    assert one(sdk=False, timeout="5s")["route"]["maxStreamDuration"] == {
        "grpcTimeoutHeaderMax": "5s",
        "maxStreamDuration": "5s",
    }


DEFAULT = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"


@pytest.mark.parametrize(
    ("retries", "expected"),
    [
        (None, {"numRetries": 2, "retryOn": DEFAULT}),
        ({"attempts": 3}, {"numRetries": 3, "retryOn": DEFAULT}),
        (
            {"attempts": 1, "retryOn": "503,gateway-error", "perTryTimeout": "2s"},
            {
                "numRetries": 1,
                "retryOn": "gateway-error,retriable-status-codes",
                "retriableStatusCodes": [503],
                "perTryTimeout": "2s",
            },
        ),
        (
            {"attempts": 1, "backoff": "0.1s"},
            {"retryBackOff": {"baseInterval": "0.100s"}, "numRetries": 1},
        ),
    ],
)
def test_retries(retries: dict[str, Any] | None, expected: dict[str, Any]) -> None:
    fields = {"retries": retries} if retries else {}
    found = one(**fields)["route"]["retryPolicy"]
    assert expected.items() <= found.items()
    assert found["hostSelectionRetryMaxAttempts"] == "5"


def test_no_retries() -> None:
    assert "retryPolicy" not in one(retries={"attempts": 0})["route"]


def test_retries_do_not_leave_the_host_that_a_hash_chose() -> None:
    extra = policy(trafficPolicy={"loadBalancer": {"consistentHash": {"httpHeaderName": "x-u"}}})
    action = one(extra=extra)["route"]
    assert action["hashPolicy"] == [{"header": {"headerName": "x-u"}}]
    assert "retryHostPredicate" not in action["retryPolicy"]


def test_faults() -> None:
    fault = {
        "delay": {"fixedDelay": "7s", "percentage": {"value": 0.1}},
        "abort": {"httpStatus": 500},
    }
    found = one(fault=fault)["typedPerFilterConfig"]["envoy.filters.http.fault"]
    assert found["delay"] == {
        "fixedDelay": "7s",
        "percentage": {"numerator": 1000, "denominator": "MILLION"},
    }
    assert found["abort"] == {"httpStatus": 500, "percentage": {"denominator": "MILLION"}}


@pytest.mark.parametrize(
    ("name", "code"), [("UNAVAILABLE", 14), ("ok", 0), ("Cancelled", 1), ("7", 7), ("NONE", None)]
)
def test_grpc_status_names(name: str, code: int | None) -> None:
    assert grpc_code(name) == code


def test_mirrors() -> None:
    listed = one(
        mirrors=[
            {"destination": {"host": "two", "port": {"number": 80}}, "percentage": {"value": 10}}
        ]
    )["route"]["requestMirrorPolicies"]
    assert [item["cluster"] for item in listed] == ["outbound|80||two.default.svc.cluster.local"]
    assert (
        "requestMirrorPolicies"
        not in one(mirror={"host": "store"}, mirrorPercentage={"value": 0})["route"]
    )


def test_the_shadow_host_bears_no_suffix() -> None:
    (policy,) = one(mirror={"host": "store"})["route"]["requestMirrorPolicies"]
    assert policy["disableShadowHostSuffixAppend"]


def test_pseudo_headers_are_no_headers() -> None:
    """Validation refuses them; what comes around it must not make Envoy refuse the route."""
    changes = {
        "request": {"set": {":path": "/x", "Host": "h", "a": "1"}, "remove": [":method", "b"]},
        "response": {"add": {":status": "200"}, "remove": ["host", "c"]},
    }
    variant = make_node().variant(Relevant())
    out = rc.Route()
    authority = actions.mutations(decode(changes, Headers), out, Scope(make_world(), variant))
    assert authority == "h"
    assert [item.header.key for item in out.request_headers_to_add] == ["a"]
    assert list(out.request_headers_to_remove) == ["b"]
    assert not out.response_headers_to_add
    assert list(out.response_headers_to_remove) == ["c"]


def test_the_prefix_of_statistics() -> None:
    assert one(match=[{"statPrefix": "mine"}])["statPrefix"] == "mine"


def test_each_destination_brings_its_hash() -> None:
    hashing = policy(trafficPolicy={"loadBalancer": {"consistentHash": {"httpHeaderName": "x"}}})
    both = [{"destination": {"host": "store", "subset": s}, "weight": 50} for s in ("a", "b")]
    found = one(extra=hashing, route=both)["route"]
    assert [item["header"]["headerName"] for item in found["hashPolicy"]] == ["x", "x"]


def test_cors_is_optional_for_who_does_not_know_it() -> None:
    found = one(corsPolicy={"allowOrigins": [{"exact": "https://a"}], "maxAge": "1h"})
    wrapper = found["typedPerFilterConfig"]["envoy.filters.http.cors"]
    assert wrapper["isOptional"]
    assert wrapper["config"]["maxAge"] == "3600"


# --- virtual hosts ---------------------------------------------------------------------------


def domains(namespace: str) -> list[str]:
    message = xds.route(make_world(BASE), make_node(namespace), ROUTE)
    found: list[str] = as_dict(message)["virtualHosts"][0]["domains"]
    return [domain for domain in found if ":" not in domain]


def test_the_names_of_a_service() -> None:
    both = [HOST, f"{HOST}."]  # the absolute form of DNS is the same host
    assert domains("default") == [*both, "store", "store.default", "store.default.svc"]
    assert domains("other") == [*both, "store.default", "store.default.svc"]


def test_the_addresses_of_a_service_are_names_of_it() -> None:
    entry = {"hosts": ["a.example"], "addresses": ["10.9.0.1/32", "10.8.0.0/16", "2001:db8::1"],
             "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], "resolution": "STATIC",
             "endpoints": [{"address": "10.7.0.1"}]}  # fmt: skip
    world = make_world(rule("ServiceEntry", entry))
    (host, _) = as_dict(xds.route(world, make_node(), "outbound|80||a.example"))["virtualHosts"]
    bare = [domain for domain in host["domains"] if not domain.endswith(":80")]
    assert bare == ["a.example", "a.example.", "10.9.0.1", "[2001:db8::1]"]
    for name in ("10.9.0.1:80", "[2001:db8::1]:80", "[2001:DB8:0::1]:80", "a.example.:80"):
        listener = DECODERS[xds.LDS].decode(xds.listener(world, make_node(), name), [])
        assert listener.route_config_name == "outbound|80||a.example", name


def test_no_domain_comes_twice() -> None:
    message = as_dict(xds.route(make_world(BASE), make_node(), ROUTE))
    found = [domain for host in message["virtualHosts"] for domain in host["domains"]]
    assert len(found) == len(set(found))


def test_bytes_are_passed_without_rules() -> None:
    text = BASE + rule("VirtualService", {"hosts": ["bytes"], "http": [
        {"fault": {"abort": {"httpStatus": 500, "percentage": {"value": 100}}},
         "route": [{"destination": {"host": "bytes", "port": {"number": 9000}}}]}]})  # fmt: skip
    name = "outbound|9000||bytes.default.svc.cluster.local"
    (host,) = as_dict(xds.route(make_world(text), make_node(), name))["virtualHosts"]
    assert host["domains"] == ["*"]
    assert [route["name"] for route in host["routes"]] == ["default"]
    assert host["routes"][0]["route"]["cluster"] == name


@pytest.mark.parametrize(
    ("match", "targets", "expected"),
    [
        (None, ["two"], {"two|81": 0}),
        (None, [("two", 1), ("store", 3), ("bytes", 0)], {"two|81": 1, "store|81": 3}),
        ({"port": 9000}, ["two"], {"two|81": 0}),
        ({"port": 9001}, ["two"], {"bytes|9000": 0}),
        ({"sourceLabels": {"app": "x"}}, ["two"], {"bytes|9000": 0}),
        ({"destinationSubnets": ["10.0.0.0/8"]}, ["two"], {"bytes|9000": 0}),
        ({"gateways": ["gw"]}, ["two"], {"bytes|9000": 0}),
    ],
)
def test_tcp_rules(
    match: dict[str, Any] | None, targets: list[Any], expected: dict[str, int]
) -> None:
    """A port that is passed on unread has no HTTP rules, and has these (V25)."""
    matches = {} if match is None else {"match": [match]}
    assert layer4({"tcp": [matches | {"route": targets}]}, 9000) == expected
    tls = {"match": [{"sniHosts": ["bytes.default.svc.cluster.local"]}], "route": ["two"]}
    assert layer4({"tls": [tls]}, 9000) == {"bytes|9000": 0}  # it is no TLS port


def test_tls_rules() -> None:
    named = {
        "match": [{"sniHosts": ["*.default.svc.cluster.local"], "port": 443}],
        "route": ["two"],
    }
    assert layer4({"tls": [named]}, 443) == {"two|81": 0}
    assert layer4({"tls": [named], "tcp": [{"route": ["store"]}]}, 443) == {"two|81": 0}
    elsewhere = named | {"match": [{"sniHosts": ["x.default.svc.cluster.local"]}]}
    assert layer4({"tls": [elsewhere], "tcp": [{"route": ["store"]}]}, 443) == {"store|81": 0}


def layer4(rules: dict[str, Any], port: int) -> dict[str, int]:
    """Clusters and weights (0: everything) of a port of `bytes`; destinations have port 81."""

    def target(name: Any) -> dict[str, Any]:
        host, weight = name if isinstance(name, tuple) else (name, None)
        found = {"destination": {"host": host, "port": {"number": 81}}}
        return found | ({} if weight is None else {"weight": weight})

    spec: dict[str, Any] = {"hosts": ["bytes", "*.default.svc.cluster.local"]}
    for kind, listed in rules.items():
        spec[kind] = [
            {**item, "route": [target(name) for name in item["route"]]} for item in listed
        ]
    text = BASE + rule("VirtualService", spec)
    name = f"outbound|{port}||bytes.default.svc.cluster.local"
    (host,) = as_dict(xds.route(make_world(text), make_node(), name))["virtualHosts"]
    (only,) = host["routes"]
    action = only["route"]
    several = action.get("weightedClusters", {}).get("clusters", ())
    weights = {entry["name"]: entry["weight"] for entry in several} or {action["cluster"]: 0}
    parts = {ClusterName.parse(cluster): weight for cluster, weight in weights.items()}
    return {f"{c.host.partition('.')[0]}|{c.port}": weight for c, weight in parts.items() if c}


def test_the_pods_of_a_headless_service_are_never_refused() -> None:
    only = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nmetadata: {name: o}\n" \
           "spec: {meshConfig: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}}\n---\n"  # fmt: skip
    headless = service("db", "http:80").replace("spec:\n", "spec:\n  clusterIP: None\n")
    world = make_world(only + headless + service("web", "http:80"))

    def others(name: str) -> str:
        found = DECODERS[xds.LDS].decode(xds.listener(world, make_node(), name), [])
        return str(found.route_config.virtual_hosts[0].name)

    assert others("db-0.db.default.svc.cluster.local:80") == "allow_any"
    assert others("db-0.db.default:80") == "allow_any"
    assert others("db-0.db.default.svc.cluster.local:81") == "block_all"
    assert others("web-0.web.default.svc.cluster.local:80") == "block_all"


def test_a_host_that_only_a_rule_knows_has_port_80() -> None:
    text = BASE + rule("VirtualService", {"hosts": ["api.example.com"], "http": [TO_STORE]})
    world = make_world(text)
    listener = as_dict(xds.listener(world, make_node(), "api.example.com:80"))
    manager = listener["apiListener"]["apiListener"]
    assert manager["rds"]["routeConfigName"] == "api.example.com:80"
    assert xds.route(world, make_node(), "api.example.com:80") is not None
    unknown = as_dict(xds.listener(world, make_node(), "api.example.com:81"))
    assert "routeConfig" in unknown["apiListener"]["apiListener"]


def test_grpcs_own_client_is_told_nothing_of_unknown_hosts() -> None:
    world = make_world(BASE)
    node = make_node(sdk=False)
    assert xds.listener(world, node, "api.example.com:80") is None
    assert xds.cluster(world, node, "PassthroughCluster") is None
    assert len(as_dict(xds.route(world, node, ROUTE))["virtualHosts"]) == 1


@pytest.mark.parametrize("name", ["", "x", "a:b", ":80", "a:0", "a:99999", "a|b", "outbound|x||a"])
@pytest.mark.parametrize("type_url", [xds.LDS, xds.RDS, xds.CDS, xds.EDS])
def test_names_of_no_known_form_do_not_exist(type_url: str, name: str) -> None:
    variant = make_node().variant(Relevant())
    assert xds.make(make_world(BASE), variant, type_url, name).message is None


def test_split_authority() -> None:
    assert split_authority("[::1]:80") == ("::1", 80)
    assert split_authority("Reviews:9080") == ("reviews", 9080)


def test_an_external_name_is_its_target() -> None:
    text = (
        BASE
        + """
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: default}
spec: {type: ExternalName, externalName: store.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: default}
spec: {type: ExternalName, externalName: api.example.com, ports: [{name: http, port: 80}]}
"""
    )
    world, node = make_world(text), make_node()
    listener = as_dict(xds.listener(world, node, "shop:8080"))
    name = listener["apiListener"]["apiListener"]["rds"]["routeConfigName"]
    host = as_dict(xds.route(world, node, name))["virtualHosts"][0]
    assert {"shop", "store"} <= set(host["domains"])
    assert host["routes"][0]["route"]["cluster"] == ROUTE
    outside = as_dict(xds.cluster(world, node, "outbound|80||outside.default.svc.cluster.local"))
    assert outside["type"] == "STRICT_DNS"
    (group,) = outside["loadAssignment"]["endpoints"]
    address = group["lbEndpoints"][0]["endpoint"]["address"]["socketAddress"]
    assert address == {"address": "api.example.com", "portValue": 80}


# --- clusters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("simple", "sdk", "native"),
    [
        (None, "LEAST_REQUEST", None),
        ("ROUND_ROBIN", None, None),
        ("LEAST_CONN", "LEAST_REQUEST", None),
        ("RANDOM", "RANDOM", None),
    ],
)
def test_balancing(simple: str | None, sdk: str | None, native: str | None) -> None:
    traffic = {"trafficPolicy": {"loadBalancer": {"simple": simple}}} if simple else None
    assert as_dict(cluster(traffic)).get("lbPolicy") == sdk
    assert as_dict(cluster(traffic, sdk=False)).get("lbPolicy") == native


def test_balancing_by_hash() -> None:
    maglev = {"consistentHash": {"httpHeaderName": "x", "maglev": {"tableSize": 101}}}
    traffic = {"trafficPolicy": {"loadBalancer": maglev}}
    assert as_dict(cluster(traffic))["lbPolicy"] == "MAGLEV"
    assert as_dict(cluster(traffic, sdk=False))["lbPolicy"] == "RING_HASH"
    world = make_world(BASE + policy(**traffic))
    assert any("MAGLEV" in note for note in notes(xds.CDS, ROUTE, world))


def test_passthrough() -> None:
    traffic = {"trafficPolicy": {"loadBalancer": {"simple": "PASSTHROUGH"}}}
    found = as_dict(cluster(traffic))
    assert (found["type"], found["lbPolicy"]) == ("ORIGINAL_DST", "CLUSTER_PROVIDED")
    assert cluster(traffic, sdk=False) is None


def test_limits() -> None:
    pool = {
        "tcp": {"maxConnections": 100, "connectTimeout": "3s"},
        "http": {"http1MaxPendingRequests": 50, "http2MaxRequests": 1000, "maxRetries": 7},
    }
    found = as_dict(cluster({"trafficPolicy": {"connectionPool": pool}}))
    (limits,) = found["circuitBreakers"]["thresholds"]
    assert (limits["maxConnections"], limits["maxPendingRequests"]) == (100, 50)
    assert (limits["maxRequests"], limits["maxRetries"]) == (1000, 7)
    assert found["connectTimeout"] == "3s"
    (native,) = as_dict(cluster(sdk=False))["circuitBreakers"]["thresholds"]
    assert native == {"maxRequests": 2**32 - 1}


def test_ejection() -> None:
    outlier = {"consecutive5xxErrors": 5, "interval": "10s", "maxEjectionPercent": 50}
    found = as_dict(cluster({"trafficPolicy": {"outlierDetection": outlier}}))
    assert found["outlierDetection"]["consecutive5xx"] == 5
    assert found["outlierDetection"]["enforcingSuccessRate"] == 0
    assert found["commonLbConfig"]["healthyPanicThreshold"] == {}
    native = as_dict(cluster({"trafficPolicy": {"outlierDetection": outlier}}, sdk=False))
    assert "outlierDetection" not in native


def test_subsets_and_the_layers_of_policy() -> None:
    traffic = {
        "trafficPolicy": {
            "loadBalancer": {"simple": "RANDOM"},
            "portLevelSettings": [
                {"port": {"number": 8080}, "connectionPool": {"tcp": {"maxConnections": 1}}}
            ],
        },
        "subsets": [
            {"name": "v1", "labels": {"version": "v1"}},
            {
                "name": "v2",
                "labels": {"version": "v2"},
                "trafficPolicy": {"loadBalancer": {"simple": "ROUND_ROBIN"}},
            },
        ],
    }
    plain = as_dict(cluster(traffic))
    assert plain["lbPolicy"] == "LEAST_REQUEST"  # the port's settings replace the balancer too
    assert plain["circuitBreakers"]["thresholds"][0]["maxConnections"] == 1
    assert "lbPolicy" not in as_dict(cluster(traffic, subset="v2"))
    assert cluster(traffic, subset="v3") is None
    world = make_world(BASE + policy(**traffic))
    name = f"outbound|8080|v2|{HOST}"
    (group,) = as_dict(xds.endpoints(world, make_node(), name))["endpoints"]
    assert len(group["lbEndpoints"]) == 1


def test_endpoints() -> None:
    message = as_dict(xds.endpoints(make_world(BASE), make_node(), ROUTE))
    nowhere, east = message["endpoints"]
    assert east["locality"] == {"region": "east", "zone": "z1", "subZone": "r1"}
    assert east["loadBalancingWeight"] == 3
    (endpoint,) = east["lbEndpoints"]
    assert endpoint["healthStatus"] == Health.HEALTHY.value
    workload = endpoint["metadata"]["filterMetadata"]["istio"]["workload"]
    assert workload == "a;default;store;v1;Kubernetes"
    assert nowhere["locality"] == {}


SERVICE_ENTRY = {
    "hosts": ["db.example.com"],
    "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
}


@pytest.mark.parametrize(
    ("resolution", "kind"),
    [("NONE", "ORIGINAL_DST"), ("DNS", "STRICT_DNS"), ("DNS_ROUND_ROBIN", "LOGICAL_DNS")],
)
def test_service_entries(resolution: str, kind: str) -> None:
    text = rule("ServiceEntry", {**SERVICE_ENTRY, "resolution": resolution})
    world, name = make_world(text), "outbound|80||db.example.com"
    found = as_dict(xds.cluster(world, make_node(), name))
    assert found["type"] == kind
    assert xds.endpoints(world, make_node(), name) is None
    native = xds.cluster(world, make_node(sdk=False), name)
    assert (native is None) == (resolution == "NONE")
    if native is not None:
        assert as_dict(native)["type"] == "LOGICAL_DNS"


def test_a_static_service_entry() -> None:
    spec = {
        **SERVICE_ENTRY,
        "resolution": "STATIC",
        "endpoints": [{"address": "10.1.1.1"}, {"address": "unix:///run/db.sock"}],
    }
    world, name = make_world(rule("ServiceEntry", spec)), "outbound|80||db.example.com"
    (group,) = as_dict(xds.endpoints(world, make_node(), name))["endpoints"]
    addresses = [item["endpoint"]["address"] for item in group["lbEndpoints"]]
    assert addresses == [
        {"socketAddress": {"address": "10.1.1.1", "portValue": 80}},
        {"pipe": {"path": "/run/db.sock"}},
    ]
    native = as_dict(xds.endpoints(world, make_node(sdk=False), name))["endpoints"]
    assert len(native[0]["lbEndpoints"]) == 1


def test_a_server_listener() -> None:
    name = "xds.istio.io/grpc/lds/inbound/[::]:9080"
    found = as_dict(xds.listener(make_world(), make_node(), name))
    assert found["address"]["socketAddress"] == {"address": "::", "portValue": 9080}


# --- what others cannot be told --------------------------------------------------------------


def test_grpc_gets_only_what_it_knows() -> None:
    fields = {
        "rewrite": {"uri": "/x"},
        "mirror": {"host": "two"},
        "headers": {"request": {"set": {"a": "b"}}},
        "corsPolicy": {"allowOrigins": [{"exact": "https://a"}]},
        "retries": {"attempts": 2, "retryOn": "5xx,unavailable", "perTryTimeout": "1s"},
    }
    found = one(sdk=False, **fields)
    assert found["route"]["retryPolicy"] == {"retryOn": "unavailable", "numRetries": 2}
    assert "requestHeadersToAdd" not in found
    assert "typedPerFilterConfig" not in found
    assert "requestMirrorPolicies" not in found["route"]
    said = " ".join(notes(xds.RDS, ROUTE, world_of({**TO_STORE, **fields})))
    for word in ("rewrite", "mirror", "header changes", "corsPolicy", "5xx", "perTryTimeout"):
        assert word in said


def test_without_headers_for_grpc_is_spelled_out() -> None:
    match = {"withoutHeaders": {"x": {"exact": "1"}, "y": {}}}
    first, second, _ = routes({**TO_STORE, "match": [match]}, TO_STORE, sdk=False)
    absent = {"name": "x", "presentMatch": True, "invertMatch": True}
    other = {"name": "x", "stringMatch": {"exact": "1"}, "invertMatch": True}
    gone = {"name": "y", "presentMatch": True, "invertMatch": True}
    assert first["match"]["headers"] == [absent, gone]
    assert second["match"]["headers"] == [other, gone]


def test_a_query_match_never_holds_for_grpc() -> None:
    match = {"queryParams": {"q": {"exact": "1"}}}
    (only,) = routes({**TO_STORE, "match": [match], "name": "r"}, sdk=False)
    assert only["name"] == "default"


# --- nodes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agent", "node_id", "metadata", "dialect"),
    [
        ("meshsdk", "sidecar~1.1.1.1~a.b~b.svc.cluster.local", {}, Dialect.SDK),
        ("gRPC Go", "sidecar~1.1.1.1~a.b~b.svc.cluster.local", {}, Dialect.GRPC),
        ("", "anything", {}, Dialect.GRPC),
        ("envoy", "sidecar~1.1.1.1~a.b~b.svc.cluster.local", {}, Dialect.ENVOY),
        ("", "router~1.1.1.1~a.b~b.svc.cluster.local", {}, Dialect.ENVOY),
    ],
)
def test_dialects(agent: str, node_id: str, metadata: dict[str, Any], dialect: Dialect) -> None:
    assert Node.make(node_id, metadata, user_agent=agent).dialect is dialect


def test_the_node_id() -> None:
    node = Node.make("sidecar~10.0.0.7~reviews-v1.prod~prod.svc.cluster.local", {})
    assert (node.kind, node.ip, node.name, node.namespace) == (
        "sidecar", "10.0.0.7", "reviews-v1", "prod",
    )  # fmt: skip
    assert Node.make("plain", {"NAMESPACE": "prod"}).namespace == "prod"
    assert Node.make("plain", {}).namespace == "default"


def test_everything_is_taken_by_our_decoders() -> None:
    found = xds.everything(world_of(TO_STORE), make_node())
    assert {url: len(messages) for url, messages in found.items()} == {
        xds.LDS: 5, xds.RDS: 5, xds.CDS: 7, xds.EDS: 5,
    }  # fmt: skip
    for url, message in itertools.chain.from_iterable(
        zip(itertools.repeat(url), messages, strict=False) for url, messages in found.items()
    ):
        remarks: list[str] = []
        decoder = DECODERS[url]
        decoder.decode(decoder.parse(message.SerializeToString()), remarks)
        assert not remarks
