"""Sidecar: who sees which services and rules, and what becomes of calls to everything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format

from controlplane.translate import resources as xds
from controlplane.world import Affected, World, diff
from tests.support.controlplane import make_node, make_world, service

SUFFIX = "svc.cluster.local"
BASE = (
    service("web", "http:80", "http-alt:8080")
    + service("api", "http:80")
    + service("api", "http:80", namespace="prod")
    + service("db", "tcp:5432", namespace="prod")
)


def document(kind: str, spec: dict[str, Any], name: str = "x", namespace: str = "default") -> str:
    return (
        json.dumps(
            {
                "apiVersion": "networking.istio.io/v1",
                "kind": kind,
                "metadata": {"name": name, "namespace": namespace},
                "spec": spec,
            }
        )
        + "\n---\n"
    )


def sidecar(*hosts: str, **more: Any) -> str:
    name, namespace = more.pop("name", "x"), more.pop("namespace", "default")
    return document("Sidecar", {"egress": [{"hosts": list(hosts)}], **more}, name, namespace)


def cluster_of(world: World, host: str, namespace: str = "default", **labels: str) -> str:
    """The first cluster that a call leads to, or what happens instead."""
    node = make_node(namespace, LABELS=labels)
    listener = xds.listener(world, node, host)
    assert listener is not None
    manager = json_format.MessageToDict(listener)["apiListener"]["apiListener"]
    config = manager.get("routeConfig")
    if config is None:
        config = json_format.MessageToDict(
            xds.route(world, node, manager["rds"]["routeConfigName"])  # type: ignore[arg-type]
        )
    route = config["virtualHosts"][0]["routes"][0]
    found: str = route["route"]["cluster"] if "route" in route else route["name"]
    return found


def outbound(host: str, port: int = 80) -> str:
    return f"outbound|{port}||{host}.{SUFFIX}"


@pytest.mark.parametrize(
    ("hosts", "seen"),
    [
        (["*/*"], {"web:80", "api:80", "api.prod:80", "db.prod:5432"}),
        (["./*"], {"web:80", "api:80"}),
        (["default/*"], {"web:80", "api:80"}),
        (["prod/*"], {"api.prod:80", "db.prod:5432"}),
        ([f"*/*.prod.{SUFFIX}"], {"api.prod:80", "db.prod:5432"}),
        ([f"./web.default.{SUFFIX}"], {"web:80"}),
        (["*/*", "~prod/*"], {"web:80", "api:80"}),
        (["*/*", f"~/api.prod.{SUFFIX}"], {"web:80", "api:80", "db.prod:5432"}),
        (["~/*"], set()),
    ],
)
def test_imported_services(hosts: list[str], seen: set[str]) -> None:
    world = make_world(BASE + sidecar(*hosts))
    for host in ("web:80", "api:80", "api.prod:80", "db.prod:5432"):
        known = cluster_of(world, host) != "PassthroughCluster"
        assert known == (host in seen), host
    names = xds.names(world, make_node().variant(xds.relevant(world)), xds.CDS)
    assert any(name == outbound("web.default") for name in names) == ("web:80" in seen)


def test_the_one_for_a_workload() -> None:
    world = make_world(
        BASE
        + sidecar("*/*", name="mesh", namespace="istio-system")
        + sidecar("./*", name="all")
        + sidecar("prod/*", name="some", workloadSelector={"labels": {"app": "batch"}})
    )
    assert cluster_of(world, "web:80") == outbound("web.default")
    assert cluster_of(world, "api.prod:80") == "PassthroughCluster"
    assert cluster_of(world, "web:80", app="batch") == "PassthroughCluster"
    assert cluster_of(world, "api.prod:80", app="batch") == outbound("api.prod")
    assert cluster_of(world, "web.default:80", namespace="prod") == outbound("web.default")


@pytest.mark.parametrize(
    ("mesh", "own", "expected"),
    [
        ("ALLOW_ANY", None, "PassthroughCluster"),
        ("ALLOW_ANY", {"mode": "REGISTRY_ONLY"}, "block_all"),
        ("ALLOW_ANY", {}, "block_all"),
        ("REGISTRY_ONLY", {"mode": "ALLOW_ANY"}, "PassthroughCluster"),
        (
            "REGISTRY_ONLY",
            {
                "mode": "ALLOW_ANY",
                "egressProxy": {"host": f"api.prod.{SUFFIX}", "port": {"number": 80}},
            },
            outbound("api.prod"),
        ),
    ],
)
def test_outbound_policy(mesh: str, own: dict[str, Any] | None, expected: str) -> None:
    settings = (
        "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nmetadata: {name: m}\n"
        f"spec: {{meshConfig: {{outboundTrafficPolicy: {{mode: {mesh}}}}}}}\n---\n"
    )
    more = {} if own is None else {"outboundTrafficPolicy": own}
    world = make_world(BASE + settings + sidecar("./*", **more))
    assert cluster_of(world, "elsewhere.example.com:80") == expected


def test_listeners_of_ports() -> None:
    spec = {
        "egress": [
            {"port": {"number": 8080, "protocol": "HTTP", "name": "a"}, "hosts": ["./*"]},
            {"hosts": ["prod/*"]},
        ]
    }
    world = make_world(BASE + document("Sidecar", spec))
    assert cluster_of(world, "web:8080") == outbound("web.default", 8080)
    assert cluster_of(world, "web:80") == "PassthroughCluster"
    assert cluster_of(world, "api.prod:80") == outbound("api.prod")


def test_without_a_listener_for_the_rest_the_rest_is_unknown() -> None:
    spec = {
        "egress": [{"port": {"number": 8080, "protocol": "HTTP", "name": "a"}, "hosts": ["*/*"]}]
    }
    world = make_world(BASE + document("Sidecar", spec))
    assert cluster_of(world, "api:80") == "PassthroughCluster"


def to(*hosts: str, target: str) -> str:
    spec = {"hosts": list(hosts), "http": [{"route": [{"destination": {"host": target}}]}]}
    return document("VirtualService", spec, f"to-{target[:3]}")


def test_rules_come_with_their_hosts_and_bring_what_they_lead_to() -> None:
    rules = to(f"web.default.{SUFFIX}", target=f"api.prod.{SUFFIX}")
    world = make_world(BASE + rules + sidecar(f"./web.default.{SUFFIX}"))
    assert cluster_of(world, "web:80") == outbound("api.prod")
    assert xds.cluster(world, make_node(), outbound("api.prod")) is not None
    assert cluster_of(world, "api.prod:80") == "PassthroughCluster"
    other = make_world(BASE + rules + sidecar(f"./api.default.{SUFFIX}"))
    assert cluster_of(other, "web:80") == "PassthroughCluster"


def test_a_host_that_is_no_service_speaks_on_the_ports_of_its_rules_services() -> None:
    rules = to(f"web.default.{SUFFIX}", "alias.example.com", target=f"api.default.{SUFFIX}")
    world = make_world(BASE + rules)
    assert cluster_of(world, "alias.example.com:8080") == outbound("api.default")
    assert cluster_of(world, "alias.example.com:81") == "PassthroughCluster"


def test_a_change_of_a_sidecar_concerns_everything() -> None:
    before, after = make_world(BASE), make_world(BASE + sidecar("./*"))
    assert diff(before, after) == Affected(everything=True)
    assert diff(after, make_world(BASE + sidecar("./*"))) == Affected()


def test_what_is_said_of_listening_is_not_honoured() -> None:
    spec = {
        "ingress": [{"port": {"number": 80, "protocol": "HTTP", "name": "a"}}],
        "egress": [
            {
                "port": {"number": 9000, "protocol": "HTTP", "name": "b"},
                "bind": "1.1.1.1",
                "hosts": ["*/*"],
            }
        ],
        "inboundConnectionPool": {"tcp": {"maxConnections": 1}},
    }
    world = make_world(BASE + document("Sidecar", spec))
    said = [finding.path for finding in world.findings if finding.code == "MSH0107"]
    assert sorted(said) == ["spec.egress[0].bind", "spec.inboundConnectionPool", "spec.ingress"]
