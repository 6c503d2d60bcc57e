"""Real Envoy as the referee: it accepts every route configuration and cluster that we render."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from controlplane.model.parse import parse_text
from controlplane.translate import resources as xds
from controlplane.world import World
from meshsdk.xds.decode import DECODERS
from tests.support.controlplane import make_node
from tests.support.programs import require_data
from tests.support.validation import envoy_accepts, envoy_bootstrap


@pytest.mark.parametrize("sdk", [True, False])
def test_envoy_accepts_what_is_rendered(tmp_path: pathlib.Path, sdk: bool) -> None:
    texts = sorted(require_data("seed-config").glob("*.yaml"))
    texts += sorted((require_data("istio/samples") / "files").rglob("*.yaml"))
    assert len(texts) > 20
    resources = {}
    for file in texts:
        for resource in parse_text(file.read_text(), file.name).resources:
            resources.setdefault(resource.ref, resource)
    world = World.build(resources.values(), analyze=False)
    bootstrap = envoy_bootstrap(world, sdk=sdk)
    assert len(bootstrap["static_resources"]["listeners"]) > 10
    envoy_accepts(bootstrap, tmp_path)


POLICIES: list[dict[str, Any]] = [
    {"connectionPool": {
        "tcp": {"maxConnections": 1, "connectTimeout": "1s", "idleTimeout": "30s",
                "maxConnectionDuration": "60s",
                "tcpKeepalive": {"probes": 3, "time": "10s", "interval": "5s"}},
        "http": {"http1MaxPendingRequests": 1, "http2MaxRequests": 2, "maxRetries": 3,
                 "maxRequestsPerConnection": 4, "idleTimeout": "5s", "maxConcurrentStreams": 6,
                 "h2UpgradePolicy": "UPGRADE",
                 "http2KeepAlive": {"interval": "10s", "timeout": "1s"}}}},
    {"connectionPool": {"http": {"useClientProtocol": True}}},
    {"outlierDetection": {
        "consecutive5xxErrors": 3, "consecutiveGatewayErrors": 0, "interval": "1s",
        "baseEjectionTime": "1s", "maxEjectionPercent": 100, "minHealthPercent": 20,
        "splitExternalLocalOriginErrors": True, "consecutiveLocalOriginFailures": 2,
        "outlierDetectionHttpErrorCodes": [500, 429]}},
    {"loadBalancer": {"simple": "ROUND_ROBIN", "warmup": {
        "duration": "60s", "aggression": 2, "minimumPercent": 5}}},
    {"loadBalancer": {"simple": "LEAST_REQUEST", "warmupDurationSecs": "10s"}},
    {"loadBalancer": {"consistentHash": {"httpHeaderName": "x", "maglev": {"tableSize": 101}}}},
    {"loadBalancer": {"consistentHash": {
        "httpCookie": {"name": "u", "ttl": "0s"}, "ringHash": {"minimumRingSize": 8}}}},
    {"loadBalancer": {"backendUtilization": {"weightUpdatePeriod": "2s"}}},
    {"loadBalancer": {"localityLbSetting": {"distribute": [
        {"from": "a/*", "to": {"a/*": 60, "b/*": 40}}]}}},
    {"loadBalancer": {"zoneAwareLbSetting": {"minClusterSize": 2}}},
    {"loadBalancer": {"simple": "PASSTHROUGH"}},
    {"retryBudget": {"percent": 10, "minRetryConcurrency": 2}},
    {"tls": {"mode": "SIMPLE"}},
    {"tls": {"mode": "SIMPLE", "insecureSkipVerify": True, "sni": "a.example.com"}},
]  # fmt: skip


def test_envoy_and_the_sdk_accept_every_block_of_a_destination_rule(tmp_path: pathlib.Path) -> None:
    """Also on clusters of every type."""
    kinds = ("STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS", "NONE")
    documents = []
    for index, policy in enumerate(POLICIES):
        for kind in kinds:
            host = f"{kind.lower().replace('_', '-')}-{index}.example.com"
            host = f"*.{host}" if kind == "DYNAMIC_DNS" else host
            ports = [{"number": 80, "name": "http", "protocol": "HTTP"}]
            entry = {"hosts": [host], "ports": ports, "resolution": kind}
            if kind == "STATIC":
                entry["endpoints"] = [{"address": "10.0.0.1", "locality": "a/b/c"}]
            rule = {"host": host, "trafficPolicy": policy}
            for name, spec in (("ServiceEntry", entry), ("DestinationRule", rule)):
                documents.append(
                    {"apiVersion": "networking.istio.io/v1", "kind": name, "spec": spec,
                     "metadata": {"name": f"x{len(documents)}", "namespace": "default"}}
                )  # fmt: skip
    parsed = parse_text("\n---\n".join(map(json.dumps, documents)))
    assert parsed.errors == ()
    world = World.build(parsed.resources, analyze=False)
    for type_url, messages in xds.everything(world, make_node()).items():
        decoder = DECODERS[type_url]
        for message in messages:
            decoder.decode(decoder.parse(message.SerializeToString()), [])
    bootstrap = envoy_bootstrap(world, sdk=True)
    assert len(bootstrap["static_resources"]["clusters"]) > 20
    envoy_accepts(bootstrap, tmp_path)
