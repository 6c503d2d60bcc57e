"""EnvoyFilters: patches that mean something to SDK nodes apply, all others are named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format

from controlplane.model.parse import parse_text
from controlplane.model.resource import Level
from controlplane.translate import resources as xds
from controlplane.translate.node import Node
from controlplane.world import World
from meshsdk.xds.decode import DECODERS
from tests.support.controlplane import make_node, make_world, service, workload

HOST = "store.default.svc.cluster.local"
NAME = f"outbound|8080||{HOST}"
BASE = service("store", "http:8080", "http-b:8081") + workload("a", "10.0.0.1", "store")
HCM = "envoy.filters.network.http_connection_manager"
TYPE = "type.googleapis.com/envoy.extensions."
MANAGER = f"{TYPE}filters.network.http_connection_manager.v3.HttpConnectionManager"
FAULT = f"{TYPE}filters.http.fault.v3.HTTPFault"
LIMIT = f"{TYPE}filters.http.local_ratelimit.v3.LocalRateLimit"

Fields = dict[str, Any]


def patch(apply_to: str, operation: str, value: Fields | None = None, **match: Any) -> Fields:
    body: Fields = {"operation": operation}
    if value is not None:
        body["value"] = value
    return {"applyTo": apply_to, "match": match, "patch": body}


def envoy_filter(*patches: Fields, namespace: str = "default", name: str = "x", **spec: Any) -> str:
    document = {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"configPatches": list(patches), **spec},
    }
    return json.dumps(document) + "\n---\n"


def world_of(*texts: str) -> World:
    return make_world(BASE, *texts)


def made(type_url: str, name: str, *texts: str, node: Node | None = None) -> Fields:
    message = getattr(xds, type_url)(world_of(*texts), node or make_node(), name)
    found: Fields = json_format.MessageToDict(message)
    return found


def cluster(*texts: str, name: str = NAME, node: Node | None = None) -> Fields:
    return made("cluster", name, *texts, node=node)


def routes(*texts: str, name: str = NAME) -> Fields:
    message = xds.route(world_of(*texts), make_node(), name)
    assert message is not None
    decoder = DECODERS[xds.RDS]
    decoder.decode(decoder.parse(message.SerializeToString()), [])
    found: Fields = json_format.MessageToDict(message)
    return found


def manager(*texts: str, port: int = 8080) -> Fields:
    found: Fields = made("listener", f"store:{port}", *texts)["apiListener"]["apiListener"]
    return found


SLOW = {"connect_timeout": "1.5s"}


@pytest.mark.parametrize(
    ("match", "applies"),
    [
        ({}, True),
        ({"context": "SIDECAR_OUTBOUND"}, True),
        ({"context": "SIDECAR_INBOUND"}, False),
        ({"context": "GATEWAY"}, False),
        ({"cluster": {"service": HOST}}, True),
        ({"cluster": {"service": HOST, "portNumber": 8081}}, False),
        ({"cluster": {"portNumber": 8080}}, True),
        ({"cluster": {"subset": "v1"}}, False),
        ({"cluster": {"name": NAME}}, True),
        ({"cluster": {"name": "other"}}, False),
        ({"proxy": {"metadata": {"TIER": "gold"}}}, True),
        ({"proxy": {"metadata": {"TIER": "tin"}}}, False),
        ({"proxy": {"proxyVersion": "^1\\.2.*"}}, True),
        ({"proxy": {"proxyVersion": "^2.*"}}, False),
    ],
)
def test_which_clusters(match: Fields, applies: bool) -> None:
    node = make_node(TIER="gold", ISTIO_VERSION="1.29.0")
    found = cluster(envoy_filter(patch("CLUSTER", "MERGE", SLOW, **match)), node=node)
    assert (found["connectTimeout"] == "1.500s") == applies


def test_which_workloads() -> None:
    own = envoy_filter(patch("CLUSTER", "MERGE", SLOW), workloadSelector={"labels": {"app": "a"}})
    assert cluster(own, node=make_node(LABELS={"app": "a"}))["connectTimeout"] == "1.500s"
    assert cluster(own, node=make_node(LABELS={"app": "b"}))["connectTimeout"] == "10s"
    elsewhere = envoy_filter(patch("CLUSTER", "MERGE", SLOW), namespace="prod")
    assert cluster(elsewhere)["connectTimeout"] == "10s"
    root = envoy_filter(patch("CLUSTER", "MERGE", SLOW), namespace="istio-system")
    assert cluster(root)["connectTimeout"] == "1.500s"


def test_the_order_of_filters() -> None:
    def timeout(seconds: int, **more: Any) -> str:
        return envoy_filter(patch("CLUSTER", "MERGE", {"connect_timeout": f"{seconds}s"}), **more)

    texts = [
        timeout(1, name="a"),
        timeout(2, name="b", namespace="istio-system"),
        timeout(3, name="c", priority=-1),
    ]
    assert cluster(*texts)["connectTimeout"] == "1s"
    assert cluster(*texts, timeout(4, name="d", priority=1))["connectTimeout"] == "4s"


def test_a_merge_keeps_what_it_does_not_name() -> None:
    limits = {"circuit_breakers": {"thresholds": [{"max_connections": 7}]}}
    found = cluster(envoy_filter(patch("CLUSTER", "MERGE", limits)))
    thresholds = found["circuitBreakers"]["thresholds"]
    assert [item.get("maxConnections") for item in thresholds] == [2**32 - 1, 7]
    replaced = cluster(envoy_filter(patch("CLUSTER", "MERGE_AND_REPLACE_LIST", limits)))
    assert [item["maxConnections"] for item in replaced["circuitBreakers"]["thresholds"]] == [7]


def test_clusters_come_and_go() -> None:
    gone = envoy_filter(patch("CLUSTER", "REMOVE", cluster={"service": HOST}))
    assert xds.cluster(world_of(gone), make_node(), NAME) is None
    own = {"name": "mine", "type": "STATIC", "load_assignment": {"cluster_name": "mine"}}
    new = envoy_filter(patch("CLUSTER", "ADD", own))
    assert cluster(new, name="mine")["type"] == "STATIC" or "type" not in cluster(new, name="mine")
    world = world_of(new)
    assert "mine" in xds.names(world, make_node().variant(xds.relevant(world)), xds.CDS)


def test_route_configurations_and_virtual_hosts() -> None:
    header = {"header": {"key": "x", "value": "1"}}
    found = routes(
        envoy_filter(
            patch("ROUTE_CONFIGURATION", "MERGE", {"request_headers_to_add": [header]}),
            patch(
                "VIRTUAL_HOST", "MERGE", {"response_headers_to_remove": ["y"]},
                routeConfiguration={"vhost": {"name": f"{HOST}:8080"}},
            ),
            patch("VIRTUAL_HOST", "REMOVE", routeConfiguration={"vhost": {"name": "allow_any"}}),
        )
    )  # fmt: skip
    assert found["requestHeadersToAdd"][0]["header"]["key"] == "x"
    (host,) = found["virtualHosts"]
    assert host["responseHeadersToRemove"] == ["y"]


ANSWER = {"match": {"prefix": "/ping"}, "direct_response": {"status": 204}, "name": "ping"}


@pytest.mark.parametrize(
    ("operation", "route", "names"),
    [
        ("INSERT_FIRST", None, ["ping", "default"]),
        ("INSERT_BEFORE", {"name": "default"}, ["ping", "default"]),
        ("INSERT_AFTER", {"name": "default"}, ["default", "ping"]),
        ("INSERT_AFTER", {"name": "other"}, ["default"]),
        ("ADD", None, ["default", "ping"]),
    ],
)
def test_routes_are_added(operation: str, route: Fields | None, names: list[str]) -> None:
    vhost: Fields = {"name": f"{HOST}:8080"}
    if route is not None:
        vhost["route"] = route
    match = {"portNumber": 8080, "vhost": vhost}
    asked = envoy_filter(patch("HTTP_ROUTE", operation, ANSWER, routeConfiguration=match))
    found = routes(asked)["virtualHosts"][0]["routes"]
    assert [item["name"] for item in found] == names
    (other,) = routes(asked, name=NAME.replace("8080", "8081"))["virtualHosts"][0]["routes"]
    assert other["name"] == "default"


def test_routes_are_changed_and_removed() -> None:
    vhost = {"vhost": {"route": {"name": "default", "action": "ROUTE"}}}
    action = {"route": {"timeout": "3s"}}
    changed = routes(envoy_filter(patch("HTTP_ROUTE", "MERGE", action, routeConfiguration=vhost)))
    assert changed["virtualHosts"][0]["routes"][0]["route"]["timeout"] == "3s"
    gone = routes(envoy_filter(patch("HTTP_ROUTE", "REMOVE", routeConfiguration=vhost)))
    assert "routes" not in gone["virtualHosts"][0]


def in_chain(name: str = "", **listener: Any) -> Fields:
    inner: Fields = {"name": HCM}
    if name:
        inner["subFilter"] = {"name": name}
    return {"listener": {**listener, "filterChain": {"filter": inner}}}


RATE = {
    "name": "envoy.filters.http.local_ratelimit",
    "typed_config": {
        "@type": LIMIT,
        "stat_prefix": "x",
        "token_bucket": {"max_tokens": 1, "fill_interval": "60s"},
    },
}


@pytest.mark.parametrize(
    ("operation", "name", "place"),
    [
        ("INSERT_FIRST", "", 0),
        ("INSERT_BEFORE", "envoy.filters.http.router", 2),
        ("INSERT_BEFORE", "", 0),
        ("INSERT_AFTER", "envoy.filters.http.fault", 1),
        ("ADD", "", None),
        ("INSERT_BEFORE", "other", None),
    ],
)
def test_filters_are_added(operation: str, name: str, place: int | None) -> None:
    asked = envoy_filter(patch("HTTP_FILTER", operation, RATE, **in_chain(name)))
    names = [item["name"] for item in manager(asked)["httpFilters"]]
    assert names[-1] == "envoy.filters.http.router"
    found = names.index(RATE["name"]) if RATE["name"] in names else None
    assert found == place  # behind the router a filter is never asked


def test_filters_of_one_port() -> None:
    asked = envoy_filter(patch("HTTP_FILTER", "INSERT_FIRST", RATE, **in_chain(portNumber=8081)))
    assert RATE["name"] not in [item["name"] for item in manager(asked)["httpFilters"]]
    assert manager(asked, port=8081)["httpFilters"][0]["name"] == RATE["name"]


def test_filters_are_changed_and_removed() -> None:
    fault = {"typed_config": {"@type": FAULT, "abort": {"http_status": 503}}}
    own = in_chain("envoy.filters.http.fault")
    found = manager(envoy_filter(patch("HTTP_FILTER", "MERGE", fault, **own)))["httpFilters"]
    assert found[0]["typedConfig"]["abort"] == {"httpStatus": 503}
    gone = manager(envoy_filter(patch("HTTP_FILTER", "REMOVE", **own)))["httpFilters"]
    assert "envoy.filters.http.fault" not in [item["name"] for item in gone]


def test_the_access_log() -> None:
    log = {
        "name": "envoy.access_loggers.file",
        "typed_config": {"@type": f"{TYPE}access_loggers.file.v3.FileAccessLog", "path": "/x"},
    }
    value = {"typed_config": {"@type": MANAGER, "access_log": [log], "xff_num_trusted_hops": 2}}
    asked = envoy_filter(patch("NETWORK_FILTER", "MERGE", value, **in_chain()))
    found = manager(asked)
    assert found["accessLog"][0]["typedConfig"]["path"] == "/x"
    assert "xffNumTrustedHops" not in found  # an SDK node would refuse it
    said = [str(f) for f in world_of(asked).findings if f.code == "MSH0160"]
    assert len(said) == 1
    assert "xff_num_trusted_hops" in said[0]


LUA = {
    "name": "envoy.filters.http.lua",
    "typed_config": {"@type": f"{TYPE}filters.http.lua.v3.Lua", "inline_code": "-- nothing"},
}


@pytest.mark.parametrize(
    ("asked", "said", "level"),
    [
        (patch("HTTP_FILTER", "INSERT_BEFORE", LUA), "lua.v3.Lua", Level.WARNING),
        (patch("LISTENER", "MERGE", {"name": "x"}), "listens to nothing", Level.WARNING),
        (patch("BOOTSTRAP", "MERGE", {"node": {"id": "x"}}), "no Envoy to start", Level.WARNING),
        (
            patch("HTTP_FILTER", "INSERT_BEFORE", RATE, context="SIDECAR_INBOUND"),
            "what servers receive",
            Level.WARNING,
        ),
        (patch("CLUSTER", "MERGE", SLOW, context="GATEWAY"), "for gateways", Level.INFO),
        (patch("CLUSTER", "MERGE", {"use_tcp_for_dns_lookups": True}), "use_tcp", Level.WARNING),
        (patch("NETWORK_FILTER", "ADD", {"name": "x"}), "ADD of a network filter", Level.WARNING),
    ],
)
def test_what_does_not_apply_is_said(asked: Fields, said: str, level: Level) -> None:
    world = world_of(envoy_filter(asked))
    (found,) = [finding for finding in world.findings if finding.code == "MSH0160"]
    assert said in found.message
    assert found.level is level
    assert found.path == "spec.configPatches[0]"
    plain = xds.everything(world_of(), make_node())
    assert xds.everything(world, make_node()) == plain


def test_settings_of_filters_that_are_not_there_go_alone() -> None:
    value = {
        "response_headers_to_remove": ["y"],
        "typed_per_filter_config": {
            "envoy.filters.http.lua": {
                "@type": LUA["typed_config"]["@type"] + "PerRoute",
                "disabled": True,
            }
        },
    }
    asked = envoy_filter(patch("VIRTUAL_HOST", "MERGE", value))
    host = routes(asked)["virtualHosts"][0]
    assert host["responseHeadersToRemove"] == ["y"]
    assert "typedPerFilterConfig" not in host
    (found,) = [f for f in world_of(asked).findings if f.code == "MSH0160"]
    assert "envoy.filters.http.lua" in found.message


def test_grpcs_own_client_gets_none() -> None:
    world = world_of(envoy_filter(patch("CLUSTER", "MERGE", SLOW)))
    found = xds.make(world, make_node(sdk=False).variant(xds.relevant(world)), xds.CDS, NAME)
    assert json_format.MessageToDict(found.message)["connectTimeout"] == "10s"  # type: ignore[arg-type]
    assert any("EnvoyFilter" in note for note in found.notes)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"patch": {"operation": "REMOVE"}}, "applyTo"),
        ({"applyTo": "CLUSTER"}, "patch"),
        ({"applyTo": "CLUSTER", "patch": {}}, "operation"),
        ({"applyTo": "CLUSTER", "patch": {"operation": "MERGE"}}, "value"),
        (patch("CLUSTER", "MERGE", {"connect_timeout": 5}), "value"),
        (patch("CLUSTER", "MERGE", SLOW, listener={}), "listener"),
        (patch("HTTP_ROUTE", "REMOVE", cluster={}), "cluster"),
        (patch("HTTP_FILTER", "REMOVE", routeConfiguration={}), "routeConfiguration"),
        (patch("CLUSTER", "REMOVE", proxy={"proxyVersion": "%#@~++==((("}), "proxyVersion"),
        (patch("HTTP_FILTER", "REMOVE", listener={"filterChain": {"filter": {}}}), "name"),
        (
            patch("NETWORK_FILTER", "REMOVE", **in_chain("envoy.filters.http.router")),
            "subFilter",
        ),
        (
            patch(
                "HTTP_FILTER",
                "ADD",
                {"name": "x", "typed_config": {"@type": "type.googleapis.com/no.such.Type"}},
            ),
            "value",
        ),
    ],
)
def test_mistakes(asked: Fields, error: str) -> None:
    (found,) = parse_text(envoy_filter(asked)).errors
    assert found.path.rpartition(".")[2].startswith(error)


OLD_NAME = {"name": "envoy.http_connection_manager"}


@pytest.mark.parametrize(
    "asked",
    [
        patch("CLUSTER", "MERGE", {**SLOW, "no_such_field": 1}),
        patch("HTTP_FILTER", "ADD", {"name": "envoy.filters.http.cors"}),
        patch("HTTP_FILTER", "REMOVE", listener={"filterChain": {"filter": OLD_NAME}}),
    ],
)  # fmt: skip
def test_warnings(asked: Fields) -> None:
    parsed = parse_text(envoy_filter(asked))
    assert parsed.errors == ()
    assert [finding.level for finding in parsed.findings] == [Level.WARNING]
