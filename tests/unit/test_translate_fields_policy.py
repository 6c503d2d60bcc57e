"""Fields of policies and of the registry, one by one: what the clusters of an SDK node become."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from controlplane.translate import resources as xds
from controlplane.translate.node import Node
from controlplane.translate.scope import ClusterName
from controlplane.world import World
from meshsdk.errors import InvalidResource
from meshsdk.model import Balancing, Cluster
from meshsdk.xds.decode import DECODERS
from tests.support.controlplane import make_node, make_world, service, workload
from tests.unit import test_translate_envoyfilter as envoyfilter
from tests.unit.test_translate import as_dict, rule

HOST = "store.default.svc.cluster.local"
BASE = (
    service("store", "http:8080", "grpc:8081")
    + workload("a", "10.0.0.1", "store", extra=["locality: east/z1/r1"])
    + workload("b", "10.0.0.2", "store", extra=["locality: west/z2/r2"])
)


def contains(found: Any, wanted: Any) -> bool:
    """Whether a message has these fields, whatever it has besides."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            key in found and contains(found[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(found) == len(wanted)
            and all(map(contains, found, wanted))
        )
    return bool(found == wanted)


PLACES: Mapping[str, Any] = {
    "trafficPolicy": lambda policy: {"trafficPolicy": policy, "subsets": [{"name": "v1"}]},
    "portLevelSettings": lambda policy: {
        "trafficPolicy": {"portLevelSettings": [{"port": {"number": 8080}, **policy}]},
        "subsets": [{"name": "v1"}],
    },
    "subset": lambda policy: {"subsets": [{"name": "v1", "trafficPolicy": policy}]},
    "portLevelSettings of a subset": lambda policy: {
        "subsets": [
            {
                "name": "v1",
                "trafficPolicy": {"portLevelSettings": [{"port": {"number": 8080}, **policy}]},
            }
        ]
    },
}
"""Where a policy may stand that holds for subset v1 on port 8080."""


def policy(spec: Any) -> World:
    return make_world(BASE + rule("DestinationRule", {"host": "store", **spec}))


def cluster(spec: Any, *, port: int = 8080, subset: str = "v1") -> dict[str, Any]:
    """The cluster as it is sent."""
    name = str(ClusterName(port, subset, HOST))
    return as_dict(xds.cluster(policy(spec), make_node(), name))


def pool(**fields: Any) -> dict[str, Any]:
    return {"connectionPool": fields}


def balancer(**fields: Any) -> dict[str, Any]:
    return {"loadBalancer": fields}


def outlier(**fields: Any) -> dict[str, Any]:
    return {"outlierDetection": fields}


def limits(**fields: Any) -> dict[str, Any]:
    return {"circuitBreakers": {"thresholds": [fields]}}


def http(**fields: Any) -> dict[str, Any]:
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {"typedExtensionProtocolOptions": {name: fields}}


def socket(**fields: Any) -> dict[str, Any]:
    return {"transportSocket": {"typedConfig": fields}}


SIMPLE: dict[str, Any] = {"tls": {"mode": "SIMPLE"}}
MUTUAL = {"mode": "MUTUAL", "clientCertificate": "/c.pem", "privateKey": "/k.pem"}
WARM = {"duration": "60s", "minimumPercent": 20, "aggression": 2}
SLOW = {"slowStartWindow": "60s", "minWeightPercent": {"value": 20.0}}
REPORTED = {
    "weightStabilizationPeriod": "1s",
    "weightExpirationPeriod": "2s",
    "weightUpdatePeriod": "3s",
    "errorUtilizationPenaltyPercent": 50,
    "metricNamesForComputingUtilization": ["named_metrics.a"],
}


def hashed(**fields: Any) -> dict[str, Any]:
    return balancer(consistentHash=fields)


POLICIES: list[tuple[str, Any, Any]] = [
    # --- connectionPool
    ("tcp.connectTimeout", pool(tcp={"connectTimeout": "3s"}), {"connectTimeout": "3s"}),
    ("tcp.maxConnections", pool(tcp={"maxConnections": 7}), limits(maxConnections=7)),
    (
        "tcp.tcpKeepalive",
        pool(tcp={"tcpKeepalive": {"probes": 3, "time": "60s", "interval": "5s"}}),
        {
            "upstreamConnectionOptions": {
                "tcpKeepalive": {
                    "keepaliveProbes": 3,
                    "keepaliveTime": 60,
                    "keepaliveInterval": 5,
                }
            }
        },
    ),
    (
        "tcp.maxConnectionDuration",
        pool(tcp={"maxConnectionDuration": "9s"}),
        http(commonHttpProtocolOptions={"maxConnectionDuration": "9s"}),
    ),
    (
        "tcp.idleTimeout",
        pool(tcp={"idleTimeout": "8s"}),
        http(commonHttpProtocolOptions={"idleTimeout": "8s"}),
    ),
    (
        "http.idleTimeout",
        pool(http={"idleTimeout": "8s"}),
        http(commonHttpProtocolOptions={"idleTimeout": "8s"}),
    ),
    (
        "http.http1MaxPendingRequests",
        pool(http={"http1MaxPendingRequests": 7}),
        limits(maxPendingRequests=7),
    ),
    ("http.http2MaxRequests", pool(http={"http2MaxRequests": 7}), limits(maxRequests=7)),
    ("http.maxRetries", pool(http={"maxRetries": 7}), limits(maxRetries=7)),
    (
        "http.maxRequestsPerConnection",
        pool(http={"maxRequestsPerConnection": 7}),
        http(commonHttpProtocolOptions={"maxRequestsPerConnection": 7}),
    ),
    (
        "http.h2UpgradePolicy",
        pool(http={"h2UpgradePolicy": "UPGRADE", "maxConcurrentStreams": 5}),
        http(explicitHttpConfig={"http2ProtocolOptions": {"maxConcurrentStreams": 5}}),
    ),
    (
        "http.http2KeepAlive",
        pool(
            http={
                "h2UpgradePolicy": "UPGRADE",
                "http2KeepAlive": {"interval": "10s", "timeout": "2s"},
            }
        ),
        http(
            explicitHttpConfig={
                "http2ProtocolOptions": {
                    "connectionKeepalive": {"interval": "10s", "timeout": "2s"}
                }
            }
        ),
    ),
    (
        "http.useClientProtocol",
        pool(http={"useClientProtocol": True}),
        http(useDownstreamProtocolConfig={}),
    ),
    # --- loadBalancer
    ("simple", balancer(simple="RANDOM"), {"lbPolicy": "RANDOM"}),
    ("simple PASSTHROUGH", balancer(simple="PASSTHROUGH"), {"type": "ORIGINAL_DST"}),
    (
        "consistentHash.ringHash",
        hashed(useSourceIp=True, ringHash={"minimumRingSize": 9}),
        {"lbPolicy": "RING_HASH", "ringHashLbConfig": {"minimumRingSize": "9"}},
    ),
    (
        "consistentHash.minimumRingSize",
        hashed(useSourceIp=True, minimumRingSize=9),
        {"lbPolicy": "RING_HASH", "ringHashLbConfig": {"minimumRingSize": "9"}},
    ),
    (
        "consistentHash.maglev",
        hashed(useSourceIp=True, maglev={"tableSize": 101}),
        {"lbPolicy": "MAGLEV", "maglevLbConfig": {"tableSize": "101"}},
    ),
    (
        "warmup",
        balancer(simple="ROUND_ROBIN", warmup=WARM),
        {"roundRobinLbConfig": {"slowStartConfig": {**SLOW, "aggression": {"defaultValue": 2.0}}}},
    ),
    (
        "warmupDurationSecs",
        balancer(simple="LEAST_REQUEST", warmupDurationSecs="60s"),
        {"leastRequestLbConfig": {"slowStartConfig": {"slowStartWindow": "60s"}}},
    ),
    (
        "backendUtilization",
        balancer(backendUtilization=REPORTED),
        {"loadBalancingPolicy": {"policies": [{}]}},
    ),
    (
        "zoneAwareLbSetting",
        balancer(zoneAwareLbSetting={"minClusterSize": 3}),
        {"commonLbConfig": {"zoneAwareLbConfig": {"minClusterSize": "3"}}},
    ),
    # --- outlierDetection
    (
        "consecutive5xxErrors",
        outlier(consecutive5xxErrors=3),
        {"outlierDetection": {"consecutive5xx": 3, "enforcingConsecutive5xx": 100}},
    ),
    (
        "consecutiveGatewayErrors",
        outlier(consecutiveGatewayErrors=3),
        {"outlierDetection": {"consecutiveGatewayFailure": 3}},
    ),
    (
        "consecutiveLocalOriginFailures",
        outlier(splitExternalLocalOriginErrors=True, consecutiveLocalOriginFailures=3),
        {
            "outlierDetection": {
                "splitExternalLocalOriginErrors": True,
                "consecutiveLocalOriginFailure": 3,
            }
        },
    ),
    ("interval", outlier(interval="3s"), {"outlierDetection": {"interval": "3s"}}),
    (
        "baseEjectionTime",
        outlier(baseEjectionTime="3s"),
        {"outlierDetection": {"baseEjectionTime": "3s"}},
    ),
    (
        "maxEjectionPercent",
        outlier(maxEjectionPercent=30),
        {"outlierDetection": {"maxEjectionPercent": 30}},
    ),
    (
        "minHealthPercent",
        outlier(minHealthPercent=30),
        {"commonLbConfig": {"healthyPanicThreshold": {"value": 30.0}}},
    ),
    (
        "outlierDetectionHttpErrorCodes",
        outlier(outlierDetectionHttpErrorCodes=[429]),
        http(outlierDetection={"errorMatcher": {}}),
    ),
]
ROUTES: list[tuple[str, Any, Any]] = [
    ("httpHeaderName", {"httpHeaderName": "x-u"}, {"header": {"headerName": "x-u"}}),
    (
        "httpQueryParameterName",
        {"httpQueryParameterName": "u"},
        {"queryParameter": {"name": "u"}},
    ),
    ("useSourceIp", {"useSourceIp": True}, {"connectionProperties": {"sourceIp": True}}),
    (
        "httpCookie",
        {
            "httpCookie": {
                "name": "u",
                "path": "/p",
                "ttl": "60s",
                "attributes": [{"name": "SameSite", "value": "Lax"}],
            }
        },
        {
            "cookie": {
                "name": "u",
                "path": "/p",
                "ttl": "60s",
                "attributes": [{"name": "SameSite", "value": "Lax"}],
            }
        },
    ),
]
EJECTS = {"outlierDetection": {}}
LOCALITIES: list[tuple[str, Any, Any]] = [
    # what the endpoints a (east/z1/r1) and b (west/z2/r2) become for a caller in east/z1/r1:
    # (priority, weight)
    ("nothing of it", balancer(simple="RANDOM"), [(0, 1), (0, 1)]),
    ("outlierDetection", EJECTS, [(0, 1), (1, 1)]),
    ("enabled", {**EJECTS, **balancer(localityLbSetting={"enabled": False})}, [(0, 1), (0, 1)]),
    (
        "distribute",
        balancer(
            localityLbSetting={
                "distribute": [{"from": "east/*", "to": {"east/*": 30, "west/*": 70}}]
            }
        ),
        [(0, 30), (0, 70)],
    ),
    (
        "failover",
        {**EJECTS, **balancer(localityLbSetting={"failover": [{"from": "east", "to": "west"}]})},
        [(0, 1), (1, 1)],
    ),
    (
        "failoverPriority",
        {**EJECTS, **balancer(localityLbSetting={"failoverPriority": ["app=none", "version"]})},
        [(0, 1), (0, 1)],
    ),
    (
        "zone-aware failover",
        {**EJECTS, **balancer(zoneAwareLbSetting={"failover": [{"from": "east", "to": "west"}]})},
        [(0, 1), (1, 1)],
    ),
    (
        "zone-aware failoverPriority",
        {**EJECTS, **balancer(zoneAwareLbSetting={"failoverPriority": ["app=none"]})},
        [(0, 1), (0, 1)],
    ),
    (
        "zone-aware enabled",
        {**EJECTS, **balancer(zoneAwareLbSetting={"enabled": False})},
        [(0, 1), (0, 1)],
    ),
]
TLS: list[tuple[str, Any, Any]] = [
    ("mode", {"mode": "SIMPLE"}, {}),
    ("sni", {"mode": "SIMPLE", "sni": "a.b"}, {"sni": "a.b"}),
    (
        "caCertificates",
        {"mode": "SIMPLE", "caCertificates": "/ca.pem"},
        {"commonTlsContext": {"validationContext": {"trustedCa": {"filename": "/ca.pem"}}}},
    ),
    (
        "clientCertificate",
        MUTUAL,
        {
            "commonTlsContext": {
                "tlsCertificates": [
                    {
                        "certificateChain": {"filename": "/c.pem"},
                        "privateKey": {"filename": "/k.pem"},
                    }
                ]
            }
        },
    ),
    (
        "subjectAltNames",
        {"mode": "SIMPLE", "subjectAltNames": ["a.b"]},
        {
            "commonTlsContext": {
                "validationContext": {"matchTypedSubjectAltNames": [{"matcher": {"exact": "a.b"}}]}
            }
        },
    ),
]


def rows(table: list[tuple[str, Any, Any]]) -> list[Any]:
    return [pytest.param(given, expected, id=name) for name, given, expected in table]


def taken(spec: Any) -> Cluster:
    """The cluster of subset v1 on port 8080 as the SDK understands it."""
    message = xds.cluster(policy(spec), make_node(), str(ClusterName(8080, "v1", HOST)))
    assert message is not None
    decoder = DECODERS[xds.CDS]
    found: Cluster = decoder.decode(decoder.parse(message.SerializeToString()), [])
    return found


@pytest.mark.parametrize(("block", "expected"), rows(POLICIES))
@pytest.mark.parametrize("place", PLACES)
def test_policies(place: str, block: Any, expected: Any) -> None:
    """A policy means the same wherever it stands, and the SDK takes it."""
    spec = PLACES[place](block)
    _check(place, spec, expected)
    taken(spec)


@pytest.mark.parametrize(
    "setting",
    [
        {"localityLbSetting": {"distribute": [{"from": "east/*", "to": {"east/*": 100}}]}},
        {"localityLbSetting": {"failover": [{"from": "east", "to": "west"}]}},
        {"zoneAwareLbSetting": {"minClusterSize": 3}},
    ],
)
def test_weights_by_reports_go_with_localities(setting: Any) -> None:
    """Envoy and the SDK refuse a cluster that says of localities what its policy does already."""
    block = {**EJECTS, **balancer(backendUtilization={}, **setting)}
    found = taken(PLACES["trafficPolicy"](block))
    assert found.balancing is Balancing.CLIENT_SIDE_WEIGHTED_ROUND_ROBIN
    assert found.lb.locality_weighted


@pytest.mark.parametrize(("tls", "expected"), rows(TLS))
@pytest.mark.parametrize("place", PLACES)
def test_tls_policies(place: str, tls: Any, expected: Any) -> None:
    spec = PLACES[place]({"tls": tls})
    _check(place, spec, socket(**expected))
    assert taken(spec).tls is not None


@pytest.mark.parametrize("tls", [{"caCrl": "/crl.pem"}, {"credentialName": "secret"}])
def test_tls_that_the_sdk_cannot_do_is_no_tls_that_checks_less(tls: Any) -> None:
    with pytest.raises(InvalidResource, match="not supported"):
        taken(PLACES["subset"]({"tls": {"mode": "SIMPLE", **tls}}))


@pytest.mark.parametrize("mode", ["DISABLE", "SIMPLE"])
def test_tls_without_verification(mode: str) -> None:
    spec = PLACES["subset"]({"tls": {"mode": mode, "insecureSkipVerify": True}})
    found = taken(spec).tls
    assert (found is None) is (mode == "DISABLE")
    assert found is None or found.roots is None


def _check(place: str, spec: Any, expected: Any) -> None:
    assert contains(cluster(spec), expected)
    assert not contains(cluster({"subsets": [{"name": "v1"}]}), expected)
    if place.startswith("portLevelSettings"):
        assert not contains(cluster(spec, port=8081), expected)
    if "subset" in place:
        assert not contains(cluster(spec, subset=""), expected)


@pytest.mark.parametrize(("asked", "expected"), rows(ROUTES))
@pytest.mark.parametrize("place", PLACES)
def test_hash_policies(place: str, asked: Any, expected: Any) -> None:
    """What a request is hashed by is said to the routes that lead to the cluster."""
    to = {"destination": {"host": "store", "subset": "v1", "port": {"number": 8080}}}
    rules = rule("VirtualService", {"hosts": ["store"], "http": [{"route": [to]}]})
    spec = {"host": "store", **PLACES[place](balancer(consistentHash=asked))}
    world = make_world(BASE + rules + rule("DestinationRule", spec))
    route = as_dict(xds.route(world, make_node(), str(ClusterName(8080, "", HOST))))
    (found,) = route["virtualHosts"][0]["routes"]
    assert found["route"]["hashPolicy"] == [expected]


@pytest.mark.parametrize(("block", "expected"), rows(LOCALITIES))
@pytest.mark.parametrize("place", PLACES)
def test_locality_policies(place: str, block: Any, expected: Any) -> None:
    here = {
        "topology.kubernetes.io/region": "east",
        "topology.kubernetes.io/zone": "z1",
        "topology.istio.io/subzone": "r1",
    }
    name = str(ClusterName(8080, "v1", HOST))
    message = xds.endpoints(policy(PLACES[place](block)), make_node(LABELS=here), name)
    assert message is not None
    found = {
        group.locality.region: (group.priority, group.load_balancing_weight.value)
        for group in message.endpoints
    }
    assert [found["east"], found["west"]] == expected


@pytest.mark.parametrize(
    ("fields", "node", "expected"),
    [
        ({}, make_node(), "RANDOM"),
        ({}, make_node("prod"), "RANDOM"),
        ({"host": HOST}, make_node(), "RANDOM"),
        ({"host": "*.default.svc.cluster.local"}, make_node(), "RANDOM"),
        ({"host": "other"}, make_node(), "LEAST_REQUEST"),
        ({"exportTo": ["."]}, make_node(), "RANDOM"),
        ({"exportTo": ["."]}, make_node("prod"), "LEAST_REQUEST"),
        ({"exportTo": ["prod"]}, make_node("prod"), "RANDOM"),
        ({"workloadSelector": {"matchLabels": {"app": "x"}}}, make_node(), "LEAST_REQUEST"),
        (
            {"workloadSelector": {"matchLabels": {"app": "x"}}},
            make_node(LABELS={"app": "x"}),
            "RANDOM",
        ),
    ],
)
def test_whom_a_policy_speaks_to(fields: Any, node: Node, expected: str) -> None:
    spec = {"host": "store", "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}, **fields}
    world = make_world(BASE + rule("DestinationRule", spec))
    found = as_dict(xds.cluster(world, node, str(ClusterName(8080, "", HOST))))
    assert found["lbPolicy"] == expected


# --- Sidecar ---------------------------------------------------------------------------------

PROD = (
    service("api", "http:80", "http-alt:81", namespace="prod")
    + workload("p", "10.0.0.9", "api", version="v1", namespace="prod")
    + rule(
        "DestinationRule",
        {"host": "api", "subsets": [{"name": "v1", "labels": {"version": "v1"}}]},
        name="api",
        namespace="prod",
    )
)


def names(*documents: str) -> set[str]:
    """Every listener that callers in `default` may ask for."""
    world = make_world(BASE + PROD, *documents)
    return {
        name.replace(".svc.cluster.local", "")
        for name in xds.names(world, make_node().variant(xds.relevant(world)), xds.LDS)
    }


@pytest.mark.parametrize(
    ("port", "seen"),
    [
        (None, {"api.prod:80", "api.prod:81"}),
        ({"number": 80, "protocol": "HTTP", "name": "any"}, {"api.prod:80"}),
        ({"number": 80, "protocol": "HTTP_PROXY", "name": "any"}, {"api.prod:80"}),
    ],
)
def test_ports_of_egress_listeners(port: Any, seen: set[str]) -> None:
    egress = {"hosts": ["prod/*"]} | ({"port": port} if port else {})
    assert names(rule("Sidecar", {"egress": [egress]})) == seen


def test_where_calls_to_unknown_hosts_go() -> None:
    proxy = {"host": "api.prod.svc.cluster.local", "subset": "v1", "port": {"number": 81}}
    outbound = {"mode": "ALLOW_ANY", "egressProxy": proxy}
    sidecar = {"egress": [{"hosts": ["*/*"]}], "outboundTrafficPolicy": outbound}
    world = make_world(BASE + PROD, rule("Sidecar", sidecar))
    listener = as_dict(xds.listener(world, make_node(), "elsewhere.example.com:80"))
    (host,) = listener["apiListener"]["apiListener"]["routeConfig"]["virtualHosts"]
    (route,) = host["routes"]
    assert route["route"]["cluster"] == "outbound|81|v1|api.prod.svc.cluster.local"


# --- EnvoyFilter -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "match", "applies"),
    [
        ("listener", {}, True),
        ("listener", {"name": "0.0.0.0_8080"}, True),
        ("listener", {"name": "virtualInbound"}, False),
        ("listener", {"filterChain": {"name": "any"}}, False),
        ("listener", {"filterChain": {"sni": "any"}}, False),
        ("listener", {"filterChain": {"transportProtocol": "tls"}}, False),
        ("listener", {"filterChain": {"transportSocket": "tls"}}, False),
        ("listener", {"filterChain": {"applicationProtocols": "h2"}}, False),
        ("listener", {"filterChain": {"destinationPort": 8080}}, False),
        ("routeConfiguration", {}, True),
        ("routeConfiguration", {"name": "8080"}, True),
        ("routeConfiguration", {"name": "8081"}, False),
        ("routeConfiguration", {"portNumber": 8080}, True),
        ("routeConfiguration", {"portNumber": 8081}, False),
        ("routeConfiguration", {"vhost": {"name": f"{HOST}:8080"}}, True),
        ("routeConfiguration", {"vhost": {"name": "other"}}, False),
        ("routeConfiguration", {"vhost": {"domainName": "store.default"}}, True),
        ("routeConfiguration", {"vhost": {"domainName": "other"}}, False),
    ],
)
def test_conditions_of_envoy_filters(kind: str, match: Any, applies: bool) -> None:
    gone = envoyfilter.patch(
        "HTTP_FILTER" if kind == "listener" else "VIRTUAL_HOST",
        "INSERT_FIRST" if kind == "listener" else "REMOVE",
        envoyfilter.RATE if kind == "listener" else None,
        **{kind: match},
    )
    plain, world = make_world(BASE), make_world(BASE, envoyfilter.envoy_filter(gone))
    name = f"{HOST}:8080" if kind == "listener" else str(ClusterName(8080, "", HOST))
    make = xds.listener if kind == "listener" else xds.route
    assert (make(world, make_node(), name) != make(plain, make_node(), name)) is applies


# --- the registry ----------------------------------------------------------------------------


def entry(*more: str, **fields: Any) -> World:
    """A world with one ServiceEntry."""
    spec = {
        "hosts": ["api.example.com"],
        "ports": [{"number": 80, "name": "web", "protocol": "HTTP"}],
        "resolution": "STATIC",
        "endpoints": [{"address": "10.0.0.1"}],
    }
    return make_world(rule("ServiceEntry", {**spec, **fields}), *more)


def target(world: World, node: Node | None = None) -> dict[str, Any]:
    """The only endpoint of `api.example.com:80`."""
    message = xds.endpoints(world, node or make_node(), "outbound|80||api.example.com")
    (group,) = as_dict(message)["endpoints"]
    (found,) = group["lbEndpoints"]
    address = found["endpoint"]["address"]["socketAddress"]
    place = "/".join(group["locality"].values())
    return {
        "address": f"{address['address']}:{address['portValue']}",
        "weight": found["loadBalancingWeight"],
        "locality": place,
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"address": "10.0.0.1:80", "weight": 1, "locality": ""}),
        (
            {"endpoints": [{"address": "10.0.0.2", "weight": 5, "locality": "a/b/c"}]},
            {"address": "10.0.0.2:80", "weight": 5, "locality": "a/b/c"},
        ),
        ({"endpoints": [{"address": "10.0.0.2", "ports": {"web": 7}}]}, {"address": "10.0.0.2:7"}),
        (
            {"ports": [{"number": 80, "name": "web", "protocol": "HTTP", "targetPort": 8}]},
            {"address": "10.0.0.1:8"},
        ),
    ],
)
def test_endpoints_of_service_entries(fields: Any, expected: Any) -> None:
    assert contains(target(entry(**fields)), expected)


@pytest.mark.parametrize(
    ("port", "domains"),
    [
        ({"name": "web", "protocol": "HTTP"}, ["api.example.com", "10.9.0.1"]),
        ({"name": "web", "protocol": "TCP"}, ["*"]),
        ({"name": "http-web"}, ["api.example.com", "10.9.0.1"]),
        ({"name": "tcp-web"}, ["*"]),
    ],
)
def test_protocols_of_service_entries(port: Any, domains: list[str]) -> None:
    """A port that speaks HTTP has virtual hosts; the bytes of others are passed on unread."""
    world = entry(ports=[{"number": 80, **port}], addresses=["10.9.0.1"])
    (host, *_) = as_dict(xds.route(world, make_node(), "outbound|80||api.example.com"))[
        "virtualHosts"
    ]
    assert set(domains) <= set(host["domains"])


@pytest.mark.parametrize(
    ("export_to", "here", "elsewhere"), [(["*"], True, True), (["."], True, False)]
)
def test_who_sees_a_service_entry(export_to: list[str], here: bool, elsewhere: bool) -> None:
    world = entry(exportTo=export_to)
    name = "outbound|80||api.example.com"
    assert (xds.cluster(world, make_node(), name) is not None) is here
    assert (xds.cluster(world, make_node("prod"), name) is not None) is elsewhere


@pytest.mark.parametrize("field", ["labels", "network"])
def test_labels_and_networks_of_endpoints(field: str) -> None:
    """Both may say which endpoints come first."""
    near, far = ({"app": "x"}, {"app": "y"}) if field == "labels" else ("n1", "n2")
    label = "app=x" if field == "labels" else "topology.istio.io/network"
    spec = {
        "host": "api.example.com",
        "trafficPolicy": {
            **EJECTS,
            **balancer(localityLbSetting={"failoverPriority": [label]}),
        },
    }
    listed = [{"address": "10.0.0.1", field: far}, {"address": "10.0.0.2", field: near}]
    world = entry(rule("DestinationRule", spec), endpoints=listed)
    message = xds.endpoints(world, make_node(NETWORK="n1"), "outbound|80||api.example.com")
    assert message is not None
    found = {
        item.endpoint.address.socket_address.address: group.priority
        for group in message.endpoints
        for item in group.lb_endpoints
    }
    assert found == {"10.0.0.2": 0, "10.0.0.1": 1}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"type": "Healthy", "status": "True"}, "HEALTHY"),
        ({"type": "Healthy", "status": "False"}, "UNHEALTHY"),
        ({"type": "Healthy", "status": "False", "reason": "Draining"}, "DRAINING"),
        ({"type": "Reconciled", "status": "False"}, "HEALTHY"),
    ],
)
def test_the_status_of_a_workload_entry(condition: Any, expected: str) -> None:
    """Whoever watches a workload says there how it is."""
    document = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {"name": "a", "namespace": "default"},
        "spec": {"address": "10.0.0.1", "labels": {"app": "store"}},
        "status": {"conditions": [condition]},
    }
    world = make_world(service("store", "http:8080"), json.dumps(document))
    message = as_dict(xds.endpoints(world, make_node(), str(ClusterName(8080, "", HOST))))
    (group,) = message["endpoints"]
    assert [one["healthStatus"] for one in group["lbEndpoints"]] == [expected]
