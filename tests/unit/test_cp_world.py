"""The world: registry, visibility, the rules in force, and what a change touches."""

from __future__ import annotations

import time

import pytest

from controlplane.model.parse import load_text
from controlplane.model.registry import Health, Locality, Protocol, Resolution
from controlplane.world import Affected, Service, World, diff

NETWORKING = "networking.istio.io/v1"


def doc(kind: str, name: str, body: str, *, namespace: str = "default", meta: str = "") -> str:
    api = {
        "Service": "v1",
        "Pod": "v1",
        "Node": "v1",
        "Endpoints": "v1",
        "EndpointSlice": "discovery.k8s.io/v1",
    }.get(kind, NETWORKING)
    metadata = f"{{name: {name}, namespace: {namespace}{', ' + meta if meta else ''}}}"
    return f"apiVersion: {api}\nkind: {kind}\nmetadata: {metadata}\n{body}\n"


def build(*documents: str) -> World:
    return World.build(load_text("---\n".join(documents), "mesh.yaml"))


def service(name: str, spec: str = "ports: [{name: http, port: 80}]", **kwargs: str) -> str:
    return doc("Service", name, f"spec: {{{spec}}}", **kwargs)


def addresses(world: World, name: str, namespace: str = "default") -> dict[str, int]:
    found = world.find_service(name, namespace)
    assert found is not None
    return {end.address: end.port for end in world.endpoints(found, found.ports[0])}


SELECTING = "selector: {app: x}, ports: [{name: http, port: 80, targetPort: 8080}]"


def workload(name: str, address: str, extra: str = "labels: {app: x}", **kwargs: str) -> str:
    return doc("WorkloadEntry", name, f"spec: {{address: {address}, {extra}}}", **kwargs)


def pod(name: str, address: str, *, ready: str = "True", meta: str = "", spec: str = "") -> str:
    labels = "labels: {app: x, version: v1}" + (", " + meta if meta else "")
    return doc(
        "Pod",
        name,
        "spec: {containers: [{ports: [{name: web, containerPort: 9080}]}]" + spec + "}\n"
        f"status: {{podIP: {address}, conditions: [{{type: Ready, status: '{ready}'}}]}}",
        meta=labels,
    )


# --- services and endpoints --------------------------------------------------------------------


def test_service_of_kubernetes() -> None:
    world = build(
        service(
            "x",
            "clusterIP: 10.0.0.1, ports: ["
            "{name: grpc-api, port: 1}, {name: web, port: 2, appProtocol: http},"
            " {name: dns, port: 53, protocol: UDP}, {name: tcp-80, port: 80}]",
        )
    )
    (found,) = world.services
    assert found.hostname == "x.default.svc.cluster.local"
    assert [port.protocol for port in found.ports] == [
        Protocol.GRPC,
        Protocol.HTTP,
        Protocol.UDP,
        Protocol.TCP,
    ]
    assert found.addresses == ("10.0.0.1",)
    assert found.resolution is Resolution.CLIENT_SIDE
    assert str(found.origin) == "mesh.yaml:1"


def test_headless_service() -> None:
    (found,) = build(service("x", "clusterIP: None, ports: [{port: 1}]")).services
    assert found.headless
    assert found.addresses == ()


def test_endpoints_from_pods_by_selector() -> None:
    world = build(
        service("x", "selector: {app: x}, ports: [{name: http, port: 80, targetPort: web}]"),
        pod("a", "10.0.0.1", spec=", nodeName: n1, serviceAccountName: sa"),
        pod("b", "10.0.0.2", ready="False"),
        pod("gone", "10.0.0.3", meta="deletionTimestamp: '2026-01-01T00:00:00Z'"),
        doc(
            "Node",
            "n1",
            "",
            meta="labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z}",
        ),
    )
    (found,) = world.services
    one, two = world.endpoints(found, found.ports[0])
    assert (one.address, one.port, one.service_account) == ("10.0.0.1", 9080, "sa")
    assert one.locality == Locality("r", "z")
    assert one.labels["version"] == "v1"
    assert (one.health, two.health) == (Health.HEALTHY, Health.UNHEALTHY)


SLICE = """addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- addresses: [10.1.0.1]
  zone: z1
- addresses: [10.1.0.2]
  conditions: {ready: false}
- addresses: [10.1.0.3]
  conditions: {ready: false, serving: true, terminating: true}"""
LIST = (
    "subsets: [{addresses: [{ip: 10.2.0.1}], notReadyAddresses: [{ip: 10.2.0.2}],"
    " ports: [{name: http, port: 8080}]}]"
)
OWNED = "labels: {kubernetes.io/service-name: x}"


def test_endpoint_slices_go_before_endpoints_and_pods() -> None:
    parts = [
        service("x", SELECTING),
        pod("a", "10.0.0.1"),
        doc("Endpoints", "x", LIST),
        doc("EndpointSlice", "x-1", SLICE, meta=OWNED),
    ]
    assert addresses(build(*parts), "x") == {"10.1.0.1": 8080, "10.1.0.2": 8080}
    assert addresses(build(*parts[:3]), "x") == {"10.2.0.1": 8080, "10.2.0.2": 8080}
    assert addresses(build(*parts[:2]), "x") == {"10.0.0.1": 8080}


def test_endpoints_of_pods_carry_the_labels_of_the_pods() -> None:
    world = build(
        service("x"),
        pod("a", "10.1.0.1"),
        doc("EndpointSlice", "x-1", SLICE, meta=OWNED),
    )
    (found,) = world.services
    labels = {end.address: end.labels for end in world.endpoints(found, found.ports[0])}
    assert labels["10.1.0.1"] == {"app": "x", "version": "v1"}
    assert labels["10.1.0.2"] == {}


def test_not_ready_addresses_count_when_the_service_says_so() -> None:
    spec = "publishNotReadyAddresses: true, ports: [{name: http, port: 80}]"
    world = build(service("x", spec), doc("EndpointSlice", "x-1", SLICE, meta=OWNED))
    (found,) = world.services
    assert {end.health for end in world.endpoints(found, found.ports[0])} == {Health.HEALTHY}


def test_service_selects_workload_entries_too() -> None:
    world = build(
        service("x", SELECTING),
        pod("a", "10.0.0.1"),
        workload("vm", "10.3.0.1"),
        workload("named", "10.3.0.2", "labels: {app: x}, ports: {http: 7070}, weight: 3"),
        workload("other", "10.3.0.3", "labels: {app: y}"),
        workload("far", "10.3.0.4", namespace="prod"),
    )
    assert addresses(world, "x") == {"10.0.0.1": 8080, "10.3.0.1": 8080, "10.3.0.2": 7070}


def test_registered_workloads_are_workload_entries() -> None:
    parts = load_text(service("x", SELECTING))
    registered = load_text(workload("vm", "10.3.0.1"))
    world = World.build(parts, registered)
    assert addresses(world, "x") == {"10.3.0.1": 8080}
    (found,) = world.services
    assert world.services_of("default", {"app": "x"}) == (found,)
    assert world.services_of("default", {}, "10.3.0.1") == (found,)
    assert world.services_of("prod", {"app": "x"}) == ()


def entry(name: str, spec: str, **kwargs: str) -> str:
    return doc("ServiceEntry", name, f"spec: {{{spec}}}", **kwargs)


PORTS = "ports: [{name: http, number: 80, protocol: HTTP, targetPort: 8080}]"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            f"hosts: [x.com], resolution: STATIC, {PORTS},"
            " endpoints: [{address: 10.0.0.1}, {address: 10.0.0.2, ports: {http: 9}}]",
            {"10.0.0.1": 8080, "10.0.0.2": 9},
        ),
        (f"hosts: [x.com], resolution: DNS, {PORTS}", {"x.com": 8080}),
        (
            f"hosts: [x.com], resolution: DNS, {PORTS}, endpoints: [{{address: y.com}}]",
            {"y.com": 8080},
        ),
        (f"hosts: [x.com], {PORTS}", {}),
        (
            f"hosts: [x.com], resolution: STATIC, {PORTS},"
            " workloadSelector: {labels: {app: x}}",
            {"10.3.0.1": 8080, "10.0.0.9": 8080},
        ),
        (
            "hosts: [x.com], resolution: STATIC, ports: [{name: http, number: 80}],"
            " endpoints: [{address: 'unix:///run/x.sock'}]",
            {"unix:///run/x.sock": 0},
        ),
    ],
)
def test_service_entry_endpoints(spec: str, expected: dict[str, int]) -> None:
    world = build(entry("x", spec), workload("vm", "10.3.0.1"), pod("a", "10.0.0.9"))
    assert addresses(world, "x.com") == expected


def test_service_entry_fields() -> None:
    world = build(
        entry(
            "x",
            "hosts: [A.com, b.com], addresses: [10.9.0.0/16], location: MESH_INTERNAL,"
            f" resolution: STATIC, exportTo: ['.'], {PORTS}, endpoints: ["
            "{address: 10.0.0.1, locality: us/east/1, network: n, serviceAccount: sa,"
            " labels: {security.istio.io/tlsMode: istio}}]",
        )
    )
    first, second = world.services
    assert (first.hostname, second.hostname) == ("a.com", "b.com")
    assert not first.external
    assert first.addresses == ("10.9.0.0/16",)
    assert first.export_to == {"."}
    (end,) = world.endpoints(first, first.ports[0])
    assert end.locality == Locality("us", "east", "1")
    assert (end.network, end.service_account, end.tls_mode) == ("n", "sa", "istio")


def test_same_host_in_several_places() -> None:
    """S11: SE and SE merge ports, a Kubernetes Service stands alone, own namespace first."""
    host = "x.default.svc.cluster.local"
    world = build(
        service("x"),
        entry("se", f"hosts: [{host}], ports: [{{name: http, number: 90}}]"),
        entry("one", f"hosts: [{host}], ports: [{{name: http, number: 91}}]", namespace="prod"),
        entry("two", f"hosts: [{host}], ports: [{{name: more, number: 92}}]", namespace="prod"),
    )

    def ports(found: Service | None) -> list[int]:
        return [port.number for port in found.ports] if found else []

    assert ports(world.service(host, "default")) == [80]
    assert ports(world.service(host, "elsewhere")) == [80]
    assert ports(world.service(host, "prod")) == [91, 92]
    assert len(world.services_with_host(host)) == 3


def test_entries_that_do_not_go_together_are_not_mixed() -> None:
    inline = "hosts: [x.com], ports: [{{name: http, number: 80}}], resolution: {}, endpoints: [{}]"
    world = build(
        entry("a", inline.format("STATIC", "{address: 10.0.0.1}")),
        entry("b", inline.format("DNS", "{address: b.example.com}")),
    )
    (found,) = world.services_with_host("x.com")
    assert [end.address for end in world.endpoints(found, found.ports[0])] == ["10.0.0.1"]


def test_addresses_in_networks_of_entries() -> None:
    """The narrowest network counts; of services that share an address one with the port."""
    text = "hosts: [{}], ports: [{{name: tcp, number: {}, protocol: TCP}}], addresses: [{}]"
    world = build(
        entry("wide", text.format("wide.com", 80, "10.0.0.0/8")),
        entry("narrow", text.format("narrow.com", 80, "10.1.0.0/16")),
        entry("one", text.format("one.com", 80, "10.1.2.3")),
        entry("two", text.format("two.com", 90, "10.1.2.3")),
    )

    def host(address: str, port: int) -> str:
        found = world.find_service(address, "default", port)
        return found.hostname if found else ""

    assert host("10.9.9.9", 80) == "wide.com"
    assert host("10.1.9.9", 80) == "narrow.com"
    assert (host("10.1.2.3", 80), host("10.1.2.3", 90)) == ("one.com", "two.com")
    assert host("11.0.0.1", 80) == ""


def test_oldest_visible_service_entry_counts() -> None:
    young = "creationTimestamp: '2026-02-01T00:00:00Z'"
    old = "creationTimestamp: '2026-01-01T00:00:00Z'"
    world = build(
        entry("a", f"hosts: [x.com], {PORTS}", namespace="a", meta=young),
        entry("b", f"hosts: [x.com], {PORTS}", namespace="b", meta=old),
        entry("c", f"hosts: [x.com], exportTo: ['.'], {PORTS}", namespace="c"),
    )
    chosen = {ns: world.service("x.com", ns) for ns in ("a", "c", "z")}
    assert {ns: found.namespace for ns, found in chosen.items() if found} == {
        "a": "a",
        "c": "c",
        "z": "b",
    }


def test_names_by_which_a_service_is_called() -> None:
    world = build(
        service("x", "clusterIP: 10.0.0.1, ports: [{port: 80}]"),
        service("x", namespace="prod"),
        entry("wild", f"hosts: ['*.example.com'], {PORTS}"),
        service("private", namespace="prod", meta="annotations: {networking.istio.io/exportTo: .}"),
    )

    def host(name: str, namespace: str = "default") -> str | None:
        found = world.find_service(name, namespace)
        return found.hostname if found else None

    own = "x.default.svc.cluster.local"
    for name in ("x", "X", "x.default", "x.default.svc", own, own + ".", "10.0.0.1"):
        assert host(name) == own
    assert host("x", "prod") == "x.prod.svc.cluster.local"
    assert host("x.default", "prod") == own
    assert host("api.example.com") == "*.example.com"
    assert host("example.com") is None
    assert host("y") is None
    assert host("10.0.0.2") is None
    assert host("private.prod") is None
    assert host("private", "prod") == "private.prod.svc.cluster.local"
    visible = [found.hostname for found in world.visible_services("default")]
    assert "private.prod.svc.cluster.local" not in visible


def test_external_name_is_an_alias() -> None:
    world = build(
        service("old", "type: ExternalName, externalName: new.default.svc.cluster.local"),
        service("out", "type: ExternalName, externalName: example.com"),
        service("loop", "type: ExternalName, externalName: loop.default.svc.cluster.local"),
        service("new"),
    )
    old, new, out, loop = (world.find_service(n, "default") for n in ("old", "new", "out", "loop"))
    assert old is not None
    assert out is not None
    assert loop is not None
    assert old.resolution is Resolution.ALIAS
    assert world.alias_target(old, "default") is new
    assert world.alias_target(out, "default") is None
    assert world.alias_target(loop, "default") is None


# --- rules -------------------------------------------------------------------------------------


def virtual(name: str, hosts: str, extra: str = "", **kwargs: str) -> str:
    route = "http: [{route: [{destination: {host: x}}]}]"
    return doc("VirtualService", name, f"spec: {{hosts: [{hosts}], {extra}{route}}}", **kwargs)


def ruler(world: World, host: str, namespace: str = "default") -> str | None:
    rule = world.virtual_service_for(namespace, host)
    return rule.name if rule else None


def test_short_names_belong_to_the_rule_not_to_the_caller() -> None:
    world = build(virtual("rule", "x", namespace="prod"))
    (rule,) = world.virtual_services("default")
    assert rule.hosts == ("x.prod.svc.cluster.local",)
    assert rule.http[0].route[0].destination.host == "x.prod.svc.cluster.local"
    assert ruler(world, "x.prod.svc.cluster.local") == "rule"


def test_first_of_several_rules_for_a_host() -> None:
    old, young = (
        "creationTimestamp: '2026-01-01T00:00:00Z'",
        "creationTimestamp: '2026-02-01T00:00:00Z'",
    )
    assert ruler(build(virtual("b", "x.com"), virtual("a", "x.com")), "x.com") == "a"
    world = build(virtual("a", "x.com", meta=young), virtual("b", "x.com", meta=old))
    assert ruler(world, "x.com") == "b"
    # Private before exported before public, whatever the age (H10).
    world = build(
        virtual("public", "x.com", namespace="a"),
        virtual("given", "x.com", "exportTo: [default], ", namespace="b", meta=young),
        virtual("own", "x.com", "exportTo: ['.'], ", meta=young),
    )
    assert [rule.name for rule in world.virtual_services("default")] == ["own", "given", "public"]
    assert ruler(world, "x.com") == "own"
    assert ruler(world, "x.com", "z") == "public"


def test_wildcard_rules_and_gateway_rules() -> None:
    world = build(
        virtual("wide", "'*.com'"),
        virtual("narrow", "'*.x.com'"),
        virtual("exact", "a.x.com"),
        virtual("gateway", "b.x.com", "gateways: [outer], "),
        virtual("both", "c.x.com", "gateways: [outer, mesh], "),
    )
    assert ruler(world, "a.x.com") == "exact"
    assert ruler(world, "b.x.com") == "narrow"
    assert ruler(world, "c.x.com") == "both"
    assert ruler(world, "y.com") == "wide"
    assert ruler(world, "y.org") is None
    (both,) = [rule for rule in world.virtual_services("default") if rule.name == "both"]
    assert both.gateways == ("default/outer", "mesh")


def test_delegates_are_merged() -> None:
    root = "http: [{match: [{uri: {prefix: /a}}], delegate: {name: leaf, namespace: prod}}]"
    leaf = (
        "http: [{match: [{uri: {prefix: /a/b}}], timeout: 1s, route: [{destination: {host: x}}]},"
        " {match: [{uri: {prefix: /c}}], route: [{destination: {host: x}}]}]"
    )
    world = build(
        service("x", namespace="prod"),
        doc("VirtualService", "root", f"spec: {{hosts: [x.com], {root}}}"),
        doc("VirtualService", "leaf", f"spec: {{{leaf}}}", namespace="prod"),
    )
    rule = world.virtual_service_for("default", "x.com")
    assert rule is not None
    (route,) = rule.http
    assert route.match[0].uri is not None
    assert route.match[0].uri.prefix == "/a/b"
    assert route.route[0].destination.host == "x.prod.svc.cluster.local"
    assert route.timeout == 1
    assert "MSH0111" in {finding.code for finding in world.findings}
    hidden = build(
        doc("VirtualService", "root", f"spec: {{hosts: [x.com], {root}}}"),
        doc("VirtualService", "leaf", f"spec: {{exportTo: ['.'], {leaf}}}", namespace="prod"),
    )
    assert "MSH0110" in {finding.code for finding in hidden.findings}
    rule = hidden.virtual_service_for("default", "x.com")
    assert rule is not None
    assert rule.http == ()


def test_deprecated_mirror_and_fault_percentages() -> None:
    spec = (
        "hosts: [x], http: [{mirror: {host: y}, mirror_percent: 30,"
        " fault: {delay: {fixedDelay: 1s, percent: 20}}, route: [{destination: {host: x}}]}]"
    )
    world = build(doc("VirtualService", "rule", f"spec: {{{spec}}}"))
    (rule,) = world.virtual_services("default")
    route = rule.http[0]
    assert route.mirror_percentage is not None
    assert route.mirror_percentage.value == 30
    assert route.fault is not None
    assert route.fault.delay is not None
    assert route.fault.delay.percentage is not None
    assert route.fault.delay.percentage.value == 20


def policy(name: str, spec: str, **kwargs: str) -> str:
    return doc("DestinationRule", name, f"spec: {{{spec}}}", **kwargs)


def test_destination_rule_is_merged_by_age() -> None:
    world = build(
        service("x"),
        policy(
            "b", "host: x, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: v2}]"
        ),
        policy("a", "host: x, subsets: [{name: v1, labels: {a: b}}, {name: v2, labels: {c: d}}]"),
    )
    (found,) = world.services
    rule = world.destination_rule("default", found)
    assert rule is not None
    assert rule.names == ("a", "b")
    assert [(subset.name, subset.labels) for subset in rule.subsets] == [
        ("v1", {"a": "b"}),
        ("v2", {"c": "d"}),
    ]
    balancer = rule.policy(80).load_balancer
    assert balancer is not None
    assert balancer.simple == "RANDOM"


def test_destination_rule_for_some_workloads() -> None:
    world = build(
        service("x"),
        policy("all", "host: x"),
        policy("some", "host: x, workloadSelector: {matchLabels: {app: y}}"),
    )
    (found,) = world.services

    def names(labels: dict[str, str], namespace: str = "default") -> tuple[str, ...]:
        rule = world.destination_rule(namespace, found, labels)
        return rule.names if rule else ()

    assert names({}) == ("all",)
    assert names({"app": "y", "z": "1"}) == ("some",)
    assert names({"app": "y"}, "prod") == ("all",)


def test_destination_rule_without_any() -> None:
    world = build(service("x"))
    assert world.destination_rule("default", world.services[0]) is None


# --- changes -----------------------------------------------------------------------------------


def test_diff_names_what_a_change_touches() -> None:
    base = [service("x", SELECTING), service("y"), workload("a", "10.0.0.1")]
    old = build(*base)
    x, y = "x.default.svc.cluster.local", "y.default.svc.cluster.local"
    assert not diff(old, build("# moved\n---\n", *base))
    assert diff(old, build(*base, workload("b", "10.0.0.2"))) == Affected(endpoints=frozenset({x}))
    assert diff(old, build(*base, virtual("rule", "y"))) == Affected(hosts=frozenset({y}))
    assert diff(old, build(*base, policy("rule", "host: y"))) == Affected(hosts=frozenset({y}))
    assert diff(old, build(base[0], base[2])) == Affected(hosts=frozenset({y}))
    wide = diff(old, build(*base, virtual("rule", "'*.default.svc.cluster.local'")))
    assert wide.hosts == {x, y, "*.default.svc.cluster.local"}
    mesh = (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio}\n"
        "data: {mesh: 'connectTimeout: 1s'}\n"
    )
    assert diff(old, build(*base, mesh)).everything


def test_a_thousand_services_in_well_under_a_second() -> None:
    documents = []
    for index in range(1000):
        name = f"s{index}"
        documents.append(
            service(name, f"selector: {{app: {name}}}, ports: [{{name: http, port: 80}}]")
        )
        documents.append(virtual(name, name))
        documents.append(policy(name, f"host: {name}, subsets: [{{name: v1, labels: {{a: b}}}}]"))
        documents += [
            workload(
                f"{name}-{n}", f"10.{index // 250}.{index % 250}.{n}", f"labels: {{app: {name}}}"
            )
            for n in range(5)
        ]
    resources = load_text("---\n".join(documents))
    started = time.process_time()
    world = World.build(resources, analyze=False)
    spent = time.process_time() - started
    assert len(world.services) == 1000
    assert addresses(world, "s7") == {f"10.0.7.{n}": 80 for n in range(5)}
    assert spent < 2.0  # 0.35 s on the machine it was written on; a slow one gets room


def test_of_two_documents_with_one_identity_the_first_counts() -> None:
    world = build(service("x", "ports: [{port: 1}]"), service("x", "ports: [{port: 2}]"))
    (found,) = world.services
    assert [port.number for port in found.ports] == [1]
    (error,) = [finding for finding in world.findings if finding.code == "MSH0102"]
    assert "is also in mesh.yaml:1" in error.message
    assert error.origin.line > 1
