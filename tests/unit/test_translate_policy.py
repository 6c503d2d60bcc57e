"""DestinationRules to clusters and endpoints: each block means there what it means in Istio."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format

from controlplane.translate import resources as xds
from controlplane.translate.localities import locality_matches
from controlplane.translate.node import Node
from controlplane.world import Locality, World
from tests.support.controlplane import make_node, make_world, service, workload

HOST = "store.default.svc.cluster.local"
NAME = f"outbound|8080||{HOST}"
OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def document(kind: str, spec: dict[str, Any], name: str = "store") -> str:
    metadata = {"name": name, "namespace": "default"}
    api = "networking.istio.io/v1"
    return json.dumps({"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}) + (
        "\n---\n"
    )


def mesh(**settings: Any) -> str:
    return (
        json.dumps(
            {
                "apiVersion": "install.istio.io/v1alpha1",
                "kind": "IstioOperator",
                "metadata": {"name": "mesh", "namespace": "istio-system"},
                "spec": {"meshConfig": settings},
            }
        )
        + "\n---\n"
    )


def world_of(policy: dict[str, Any] | None, *more: str, port: str = "http:8080") -> World:
    rule = {"host": "store", "trafficPolicy": policy}
    text = document("DestinationRule", rule) if policy is not None else ""
    return make_world(service("store", port), text, *more)


def cluster(policy: dict[str, Any] | None, *more: str, **asked: Any) -> dict[str, Any]:
    message = xds.cluster(world_of(policy, *more, **asked), make_node(), NAME)
    found: dict[str, Any] = json_format.MessageToDict(message)  # type: ignore[arg-type]
    return found


def options(policy: dict[str, Any], *more: str, **asked: Any) -> dict[str, Any]:
    found: dict[str, Any] = cluster(policy, *more, **asked)["typedExtensionProtocolOptions"]
    return found[OPTIONS]


def pool(**blocks: Any) -> dict[str, Any]:
    return {"connectionPool": blocks}


def test_times_of_connections() -> None:
    asked = pool(
        tcp={"idleTimeout": "30s", "maxConnectionDuration": "60s"},
        http={"maxRequestsPerConnection": 9},
    )
    common = options(asked)["commonHttpProtocolOptions"]
    assert common == {
        "idleTimeout": "30s",
        "maxConnectionDuration": "60s",
        "maxRequestsPerConnection": 9,
    }
    own = options(pool(tcp={"idleTimeout": "30s"}, http={"idleTimeout": "5s"}))
    assert own["commonHttpProtocolOptions"]["idleTimeout"] == "5s"


def test_a_tcp_port_with_an_idle_timeout_still_has_a_protocol() -> None:
    found = options(pool(tcp={"idleTimeout": "30s"}), port="tcp:8080")
    assert found["explicitHttpConfig"] == {"httpProtocolOptions": {}}
    assert "typedExtensionProtocolOptions" not in cluster(None, port="tcp:8080")


@pytest.mark.parametrize(
    ("http", "settings", "port", "expected"),
    [
        ({}, {}, "http:8080", "httpProtocolOptions"),
        ({}, {"h2UpgradePolicy": "UPGRADE"}, "http:8080", "http2ProtocolOptions"),
        (
            {"h2UpgradePolicy": "DO_NOT_UPGRADE"},
            {"h2UpgradePolicy": "UPGRADE"},
            "http:8080",
            "httpProtocolOptions",
        ),
        ({"h2UpgradePolicy": "UPGRADE"}, {}, "http:8080", "http2ProtocolOptions"),
        ({}, {}, "grpc:8080", "http2ProtocolOptions"),
    ],
)
def test_the_protocol(
    http: dict[str, Any], settings: dict[str, Any], port: str, expected: str
) -> None:
    found = options(pool(http=http), mesh(**settings), port=port)
    assert list(found["explicitHttpConfig"]) == [expected]


def test_the_protocol_of_the_client_goes_before_an_upgrade() -> None:
    asked = pool(http={"useClientProtocol": True})
    assert "useDownstreamProtocolConfig" in options(asked, mesh(h2UpgradePolicy="UPGRADE"))


def test_http2_settings() -> None:
    alive = {"interval": "10s", "timeout": "2s"}
    asked = pool(http={"maxConcurrentStreams": 7, "http2KeepAlive": alive})
    found = options(asked, port="grpc:8080")["explicitHttpConfig"]["http2ProtocolOptions"]
    assert found == {"maxConcurrentStreams": 7, "connectionKeepalive": alive}


def test_keepalive_of_the_mesh_is_overridden_field_by_field() -> None:
    settings = mesh(tcpKeepalive={"time": "60s", "probes": 3})
    found = cluster(pool(tcp={"tcpKeepalive": {"time": "10s"}}), settings)
    alive = found["upstreamConnectionOptions"]["tcpKeepalive"]
    assert alive == {"keepaliveTime": 10, "keepaliveProbes": 3}


def test_a_retry_budget_replaces_the_limit() -> None:
    asked = {"retryBudget": {"percent": 30, "minRetryConcurrency": 5}}
    (limits,) = cluster(asked)["circuitBreakers"]["thresholds"]
    assert limits["retryBudget"] == {
        "budgetPercent": {"value": 30.0},
        "minRetryConcurrency": 5,
    }
    assert "maxRetries" not in limits


def test_ejection_by_chosen_codes() -> None:
    asked = {"outlierDetection": {"outlierDetectionHttpErrorCodes": [429, 503]}}
    found = options(asked)["outlierDetection"]["errorMatcher"]["orMatch"]["rules"]
    seen = [rule["httpResponseHeadersMatch"]["headers"][0]["stringMatch"] for rule in found]
    assert seen == [{"exact": "429"}, {"exact": "503"}]


def test_ejection_for_errors_of_this_side() -> None:
    split = {"splitExternalLocalOriginErrors": True}
    found = cluster({"outlierDetection": split})["outlierDetection"]
    assert found == {
        "enforcingSuccessRate": 0,
        "splitExternalLocalOriginErrors": True,
        "enforcingLocalOriginSuccessRate": 0,
    }


def test_defaults_of_the_mesh_fill_in_whole_blocks() -> None:
    settings = mesh(
        defaultTrafficPolicy={
            "connectionPool": {"tcp": {"maxConnections": 100}},
            "outlierDetection": {"consecutive5xxErrors": 5},
        }
    )
    plain = cluster(None, settings)
    assert plain["circuitBreakers"]["thresholds"][0]["maxConnections"] == 100
    assert plain["outlierDetection"]["consecutive5xx"] == 5
    own = cluster(pool(http={"maxRetries": 1}), settings)
    assert own["circuitBreakers"]["thresholds"][0]["maxConnections"] == 2**32 - 1
    assert own["outlierDetection"]["consecutive5xx"] == 5


def test_slow_start() -> None:
    warm = {"simple": "ROUND_ROBIN", "warmup": {"duration": "60s"}}
    slow = cluster({"loadBalancer": warm})["roundRobinLbConfig"]["slowStartConfig"]
    assert slow["slowStartWindow"] == "60s"
    assert slow["minWeightPercent"] == {"value": 10.0}
    assert slow["aggression"]["defaultValue"] == 1.0


def test_weights_by_what_endpoints_report() -> None:
    asked = {
        "backendUtilization": {"weightUpdatePeriod": "2s", "errorUtilizationPenaltyPercent": 50}
    }
    (outer,) = cluster({"loadBalancer": asked})["loadBalancingPolicy"]["policies"]
    typed = outer["typedExtensionConfig"]["typedConfig"]
    (inner,) = typed["endpointPickingPolicy"]["policies"]
    found = inner["typedExtensionConfig"]["typedConfig"]
    assert (found["weightUpdatePeriod"], found["errorUtilizationPenalty"]) == ("2s", 0.5)


# --- TLS -------------------------------------------------------------------------------------


def socket(tls: dict[str, Any], **asked: Any) -> dict[str, Any]:
    found: dict[str, Any] = cluster({"tls": tls}, **asked)["transportSocket"]["typedConfig"]
    return found


def test_tls_with_the_roots_of_the_system() -> None:
    found = socket({"mode": "SIMPLE"})
    assert found["commonTlsContext"] == {"validationContext": {"systemRootCerts": {}}}
    assert options({"tls": {"mode": "SIMPLE"}})["upstreamHttpProtocolOptions"] == {
        "autoSni": True,
        "autoSanValidation": True,
    }


def test_tls_by_files() -> None:
    tls = {
        "mode": "MUTUAL",
        "clientCertificate": "/c.pem",
        "privateKey": "/k.pem",
        "caCertificates": "/ca.pem",
        "sni": "a.example.com",
        "subjectAltNames": ["a.example.com", "spiffe://td/x", "10.0.0.1"],
    }
    found = socket(tls, port="grpc:8080")
    assert found["sni"] == "a.example.com"
    common = found["commonTlsContext"]
    assert common["alpnProtocols"] == ["h2"]
    (shown,) = common["tlsCertificates"]
    assert shown["certificateChain"] == {"filename": "/c.pem"}
    assert shown["privateKey"] == {"filename": "/k.pem"}
    names = common["validationContext"]["matchTypedSubjectAltNames"]
    assert [name["sanType"] for name in names] == ["DNS", "URI", "IP_ADDRESS"]


def test_tls_without_verification_only_when_asked() -> None:
    found = socket({"mode": "SIMPLE", "insecureSkipVerify": True, "sni": "x"})
    assert "validationContext" not in found.get("commonTlsContext", {})


def test_a_secret_by_name_is_said_as_such() -> None:
    """The SDK has no secrets: it refuses the cluster rather than send calls unprotected."""
    found = socket({"mode": "SIMPLE", "credentialName": "cred"})["commonTlsContext"]
    source = found["combinedValidationContext"]["validationContextSdsSecretConfig"]
    assert source["name"] == "kubernetes://cred-cacert"


@pytest.mark.parametrize("mode", ["DISABLE", "ISTIO_MUTUAL"])
def test_no_tls(mode: str) -> None:
    assert "transportSocket" not in cluster({"tls": {"mode": mode}})


# --- localities ------------------------------------------------------------------------------

PLACES = (
    workload("a", "10.0.0.1", "store", extra=["locality: r1/z1/s1"])
    + workload("b", "10.0.0.2", "store", extra=["locality: r1/z1/s2"])
    + workload("c", "10.0.0.3", "store", extra=["locality: r1/z2/s1"])
    + workload("d", "10.0.0.4", "store", extra=["locality: r2/z1/s1"])
    + workload("e", "10.0.0.5", "store", extra=["locality: r3/z1/s1"])
)
HERE = {
    "topology.kubernetes.io/region": "r1",
    "topology.kubernetes.io/zone": "z1",
    "topology.istio.io/subzone": "s1",
}


def ranked(policy: dict[str, Any] | None, *more: str, node: Node | None = None) -> dict[str, Any]:
    """(priority, weight) of each endpoint, by the last number of its address."""
    world = world_of(policy, PLACES, *more)
    message = xds.endpoints(world, node or make_node(LABELS=HERE), NAME)
    assert message is not None
    return {
        item.endpoint.address.socket_address.address[-1]: (
            group.priority,
            group.load_balancing_weight.value,
        )
        for group in message.endpoints
        for item in group.lb_endpoints
    }


def priorities(policy: dict[str, Any] | None, *more: str) -> dict[str, int]:
    return {key: value[0] for key, value in ranked(policy, *more).items()}


EJECTS = {"outlierDetection": {}}
ALL_EQUAL = {"1": 0, "2": 0, "3": 0, "4": 0, "5": 0}
NEAREST = {"1": 0, "2": 1, "3": 2, "4": 3, "5": 3}


def locality(**setting: Any) -> dict[str, Any]:
    return {**EJECTS, "loadBalancer": {"localityLbSetting": setting}}


def test_the_nearest_first_where_hosts_are_ejected() -> None:
    assert priorities(EJECTS) == NEAREST
    assert priorities(None) == ALL_EQUAL


def test_failover_can_be_switched_off() -> None:
    assert priorities(locality(enabled=False)) == ALL_EQUAL
    assert priorities(EJECTS, mesh(localityLbSetting={"enabled": False})) == ALL_EQUAL
    own = {**EJECTS, "loadBalancer": {"localityLbSetting": {"enabled": True}}}
    assert priorities(own, mesh(localityLbSetting={"enabled": False})) == NEAREST


def test_failover_to_a_region() -> None:
    setting = locality(failover=[{"from": "r1", "to": "r3"}])
    assert priorities(setting) == {"1": 0, "2": 1, "3": 2, "5": 3, "4": 4}
    assert "localityWeightedLbConfig" in cluster(setting)["commonLbConfig"]


def test_failover_by_labels() -> None:
    order = ["topology.kubernetes.io/region", "version=v1"]
    found = priorities(locality(failoverPriority=order), workload(
        "f", "10.0.0.6", "store", version="v2", extra=["locality: r1/z1/s1"]
    ))  # fmt: skip
    assert found == {"1": 0, "2": 0, "3": 0, "6": 1, "4": 2, "5": 2}


def test_labels_then_places() -> None:
    setting = locality(failoverPriority=["version=v1"], failover=[{"from": "r1", "to": "r3"}])
    assert priorities(setting) == {"1": 0, "2": 1, "3": 2, "5": 3, "4": 4}


def test_shares_of_places() -> None:
    to = {"r1/z1/*": 70, "r2/*": 20, "r3/z1/s1": 10}
    setting = locality(distribute=[{"from": "r1/*", "to": to}])
    found = ranked(setting)
    assert found == {"1": (0, 35), "2": (0, 35), "4": (0, 20), "5": (0, 10)}
    elsewhere = {**HERE, "topology.kubernetes.io/region": "r9"}
    assert len(ranked(setting, node=make_node(LABELS=elsewhere))) == 5


def test_traffic_distribution_of_a_service() -> None:
    text = service("store", "http:8080").replace(
        "spec:\n", "spec:\n  trafficDistribution: PreferSameZone\n"
    )
    world = make_world(text, PLACES)
    message = xds.endpoints(world, make_node(LABELS=HERE), NAME)
    assert message is not None
    assert [group.priority for group in message.endpoints] == [0, 0, 1, 2, 2]


def test_zones() -> None:
    asked = {"loadBalancer": {"zoneAwareLbSetting": {"minClusterSize": 3}}}
    config = cluster(asked)["commonLbConfig"]["zoneAwareLbConfig"]
    assert config == {"minClusterSize": "3"}
    off = {"loadBalancer": {"zoneAwareLbSetting": {"enabled": False}}}
    assert "zoneAwareLbConfig" not in cluster(off).get("commonLbConfig", {})


def test_where_a_node_is() -> None:
    assert make_node(LABELS={"istio-locality": "r1.z1"}).place == Locality("r1", "z1")
    assert make_node(LABELS=HERE).place == Locality("r1", "z1", "s1")
    said = Node.make("n", {"LABELS": HERE}, locality=Locality("r5"))
    assert said.place == Locality("r5")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("*", True), ("r1/*", True), ("r1/z1/*", True), ("r1/z1", True), ("r2/*", False),
     ("r1/z2/s1", False)],
)  # fmt: skip
def test_places(rule: str, expected: bool) -> None:
    assert locality_matches(Locality("r1", "z1", "s1"), rule) is expected


# --- how endpoints are found -----------------------------------------------------------------


def test_hosts_below_a_wildcard_are_looked_up_call_by_call() -> None:
    entry = {
        "hosts": ["*.example.com"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        "resolution": "DYNAMIC_DNS",
    }
    world = make_world(document("ServiceEntry", entry))
    name = "outbound|80||*.example.com"
    found = json_format.MessageToDict(xds.cluster(world, make_node(), name))  # type: ignore[arg-type]
    assert found["clusterType"]["name"] == "envoy.clusters.dynamic_forward_proxy"
    assert found["lbPolicy"] == "CLUSTER_PROVIDED"
    assert xds.cluster(world, make_node(sdk=False), name) is None
