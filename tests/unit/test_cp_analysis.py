"""Silence is the complaint: a rule that does nothing is said, with what would be right."""

from __future__ import annotations

import textwrap

import pytest

from controlplane.model.parse import load_text
from controlplane.model.resource import Finding, Level
from controlplane.world import World

REGISTRY = """
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 9080}]
---
apiVersion: v1
kind: Service
metadata: {name: admin, namespace: prod}
spec:
  ports: [{name: http, port: 80}, {name: http-metrics, port: 9090}]
---
apiVersion: v1
kind: Service
metadata: {name: hidden, namespace: prod, annotations: {networking.istio.io/exportTo: "."}}
spec:
  ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: bytes}
spec:
  ports: [{name: tcp-80, port: 80}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v1}
spec: {address: 127.0.0.2, labels: {app: reviews, version: v1}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}]
---
"""


def virtual_service(body: str, *, name: str = "rule", namespace: str = "default") -> str:
    return (
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n"
        f"metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n"
        + textwrap.indent(textwrap.dedent(body).strip("\n"), "  ")
        + "\n"
    )


def destination_rule(body: str, *, name: str = "policy", namespace: str = "default") -> str:
    text = virtual_service(body, name=name, namespace=namespace)
    return text.replace("VirtualService", "DestinationRule")


def findings(*documents: str) -> list[Finding]:
    resources = load_text(REGISTRY + "---\n".join(documents), "mesh.yaml")
    return list(World.build(resources).findings)


ROUTE = "http: [{route: [{destination: {host: reviews}}]}]"


def test_a_rule_that_works_says_nothing() -> None:
    assert findings(virtual_service(f"hosts: [reviews]\n{ROUTE}")) == []


def test_a_public_name_of_a_gateway_need_not_be_in_the_registry() -> None:
    gateway = (
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: gw}\n"
        "spec: {servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}\n"
    )
    rule = f"gateways: [gw, mesh]\n{ROUTE}"
    shown = findings(gateway, virtual_service(f"hosts: [shop.example.com, reviews]\n{rule}"))
    assert [f.code for f in shown if f.level > Level.INFO] == []
    shown = findings(gateway, virtual_service(f"hosts: [revews]\n{rule}"))
    assert "MSH0120" in [f.code for f in shown]
    shown = findings(gateway, virtual_service(f"hosts: [reviews.default]\n{rule}"))
    assert "MSH0120" in [f.code for f in shown]


@pytest.mark.parametrize(
    ("body", "code", "level", "path", "message"),
    [
        (
            f"hosts: [revews]\n{ROUTE}",
            "MSH0120",
            Level.WARNING,
            "spec.hosts[0]",
            'did you mean "reviews"?',
        ),
        (
            f"hosts: [admin]\n{ROUTE}",
            "MSH0120",
            Level.WARNING,
            "spec.hosts[0]",
            'admin is in namespace prod: write "admin.prod.svc.cluster.local"',
        ),
        (
            f"hosts: [reviews.default]\n{ROUTE}",
            "MSH0120",
            Level.WARNING,
            "spec.hosts[0]",
            'taken literally: write "reviews.default.svc.cluster.local"',
        ),
        (
            f"hosts: ['*.nowhere.com']\n{ROUTE}",
            "MSH0120",
            Level.WARNING,
            "spec.hosts[0]",
            "matches no service",
        ),
        (
            "hosts: [reviews]\nhttp: [{route: [{destination: {host: reviws}}]}]",
            "IST0101",
            Level.ERROR,
            "spec.http[0].route[0].destination.host",
            'did you mean "reviews"?',
        ),
        (
            "hosts: [reviews]\nhttp: [{route: [{destination: {host: reviews, subset: v11}}]}]",
            "IST0101",
            Level.ERROR,
            "spec.http[0].route[0].destination.subset",
            'did you mean "v1"?',
        ),
        (
            "hosts: [bytes]\ntcp: [{route: [{destination: {host: bytes, subset: v1}}]}]",
            "IST0101",
            Level.ERROR,
            "spec.tcp[0].route[0].destination.subset",
            "no DestinationRule defines subsets for bytes.default",
        ),
        (
            "hosts: [reviews]\n"
            "http: [{route: [{destination: {host: reviews, port: {number: 80}}}]}]",
            "MSH0121",
            Level.ERROR,
            "spec.http[0].route[0].destination.port.number",
            "has no port 80: it has 9080 (http)",
        ),
        (
            "hosts: [reviews]\n"
            "http: [{route: [{destination: {host: admin.prod.svc.cluster.local}}]}]",
            "IST0112",
            Level.ERROR,
            "spec.http[0].route[0].destination.port",
            "several ports (80 (http), 9090 (http-metrics))",
        ),
        (
            "hosts: [reviews]\n"
            "http: [{route: [{destination: {host: hidden.prod.svc.cluster.local}}]}]",
            "MSH0122",
            Level.ERROR,
            "spec.http[0].route[0].destination.host",
            "Service prod/hidden does not export",
        ),
        (
            "hosts: [reviews]\n"
            "http: [{match: [{port: 80}], route: [{destination: {host: reviews}}]}]",
            "MSH0123",
            Level.WARNING,
            "spec.http[0].match[0].port",
            "they have 9080",
        ),
        (
            f"hosts: [reviews]\ngateways: [gone]\n{ROUTE}",
            "IST0101",
            Level.ERROR,
            "spec.gateways[0]",
            "Gateway default/gone does not exist",
        ),
        (
            f"hosts: [reviews]\ngateways: [gone]\n{ROUTE}",
            "MSH0124",
            Level.INFO,
            "spec.gateways",
            'add "mesh" to gateways',
        ),
        (
            "hosts: [reviews]\n"
            "http: [{fault: {abort: {httpStatus: 500}}, route: [{destination: {host: reviews}}]}]",
            "MSH0125",
            Level.WARNING,
            "spec.http[0].fault.abort",
            "affects no request",
        ),
        (
            "hosts: [bytes]\nhttp: [{route: [{destination: {host: bytes}}]}]",
            "MSH0126",
            Level.WARNING,
            "spec.http",
            "no port of bytes.default.svc.cluster.local speaks HTTP (tcp-80: TCP)",
        ),
        (
            "hosts: [reviews]\n"
            "http: [{mirror: {host: review}, route: [{destination: {host: reviews}}]}]",
            "IST0101",
            Level.ERROR,
            "spec.http[0].mirror.host",
            'not in the registry: nothing is mirrored; did you mean "reviews"?',
        ),
        (
            "http: [{route: [{destination: {host: reviews}}]}]",
            "MSH0127",
            Level.WARNING,
            "spec",
            "no VirtualService delegates to it",
        ),
        (
            "hosts: [reviews]\nhttp: [{match: [{uri: {prefix: /x}}], delegate: {name: gone}}]",
            "IST0101",
            Level.ERROR,
            "spec.http[0].delegate",
            "delegate VirtualService default/gone does not exist",
        ),
    ],
)
def test_virtual_service(body: str, code: str, level: Level, path: str, message: str) -> None:
    found = [finding for finding in findings(virtual_service(body)) if finding.code == code]
    assert [(one.level, one.path) for one in found] == [(level, path)]
    assert message in found[0].message
    assert found[0].origin.file == "mesh.yaml"
    assert found[0].origin.line > REGISTRY.count("\n")


def test_two_rules_for_one_host_the_oldest_wins_and_it_is_said() -> None:
    found = findings(
        virtual_service(f"hosts: [reviews]\n{ROUTE}", name="zebra"),
        virtual_service(f"hosts: [reviews.default.svc.cluster.local]\n{ROUTE}", name="ant"),
    )
    (conflict,) = [finding for finding in found if finding.code == "IST0109"]
    assert conflict.level is Level.ERROR
    assert conflict.resource == "VirtualService default/zebra"
    assert "is ruled by VirtualService default/ant (mesh.yaml:" in conflict.message


def test_rules_that_no_namespace_sees_together_do_not_conflict() -> None:
    found = findings(
        virtual_service(f"hosts: [reviews.default.svc.cluster.local]\nexportTo: ['.']\n{ROUTE}"),
        virtual_service(
            "hosts: [reviews.default.svc.cluster.local]\nexportTo: ['.']\n"
            "http: [{route: [{destination: {host: reviews.default.svc.cluster.local}}]}]",
            namespace="prod",
        ),
    )
    assert found == []


@pytest.mark.parametrize(
    ("body", "namespace", "code", "message"),
    [
        ("host: review", "default", "MSH0130", 'did you mean "reviews"?'),
        (
            "host: reviews\nsubsets: [{name: v3, labels: {version: v3}}]",
            "default",
            "MSH0131",
            "selects no endpoint of reviews.default.svc.cluster.local (it has 1):"
            " calls to it get 503; there version is v1",
        ),
        (
            "host: reviews\nsubsets: [{name: v1, labels: {version: v1}}]",
            "default",
            "MSH0132",
            "subset 'v1' is also in DestinationRule default/policy",
        ),
        (
            "host: reviews\ntrafficPolicy: {outlierDetection: {consecutive5xxErrors: 3}}",
            "default",
            "MSH0133",
            "maxEjectionPercent 10 (the default) ejects nobody among fewer than 10 hosts;"
            " now it is 1",
        ),
        (
            "host: reviews.default.svc.cluster.local\n"
            "trafficPolicy: {loadBalancer: {simple: RANDOM}}",
            "prod",
            "MSH0134",
            "applies to callers in prod only",
        ),
    ],
)
def test_destination_rule(body: str, namespace: str, code: str, message: str) -> None:
    found = findings(destination_rule(body, namespace=namespace))
    (one,) = [finding for finding in found if finding.code == code]
    assert message in one.message


def test_service_entry_that_selects_nothing() -> None:
    found = findings(
        virtual_service(
            "hosts: [shop.example.com]\nresolution: STATIC\n"
            "workloadSelector: {labels: {app: shop}}\nports: [{name: http, number: 80}]"
        ).replace("VirtualService", "ServiceEntry")
    )
    assert [finding.code for finding in found] == ["MSH0140"]
    assert "app=shop" in found[0].message


def test_port_without_protocol() -> None:
    service = "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 1}]}\n"
    assert [finding.code for finding in findings(service)] == ["IST0118"]


def test_sampling_is_a_percentage() -> None:
    found = findings(
        "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n"
        "  meshConfig: {defaultConfig: {tracing: {sampling: 0.05}}}\n"
    )
    assert [finding.code for finding in found] == ["MSH0150"]
    assert "means 0.05 %" in found[0].message
    assert found[0].path == "spec.meshConfig.defaultConfig.tracing.sampling"


def test_kinds_not_enforced_are_said_once_and_policies_are_listed() -> None:
    policy = (
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
        "metadata: {name: NAME}\nspec: {rules: [{}]}\n"
    )
    strict = (
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n"
        "metadata: {name: MODE}\nspec: {mtls: {mode: MODE}}\n"
    )
    documents = [
        policy.replace("NAME", "one"),
        policy.replace("NAME", "two"),
        strict.replace("name: MODE", "name: strict").replace("MODE", "STRICT"),
        strict.replace("name: MODE", "name: lax").replace("MODE", "PERMISSIVE"),
    ]
    resources = load_text("---\n".join(documents), "mesh.yaml")
    world = World.build(resources)
    notices = [finding for finding in world.findings if finding.code == "MSH0100"]
    assert [notice.message.split(" (")[0] for notice in notices] == [
        "AuthorizationPolicy is accepted, not enforced yet",
        "PeerAuthentication is accepted, not enforced yet",
    ]
    assert [finding.resource for finding in world.unenforced] == [
        "AuthorizationPolicy default/one",
        "AuthorizationPolicy default/two",
        "PeerAuthentication default/strict",
    ]


def test_tls_that_clients_cannot_do_is_said_at_every_level() -> None:
    rule = """
    host: reviews
    trafficPolicy:
      tls: {mode: ISTIO_MUTUAL}
      portLevelSettings: [{port: {number: 9080}, tls: {mode: SIMPLE}}]
    subsets:
    - {name: v1, labels: {version: v1}, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}
    - {name: v2, labels: {version: v2}, trafficPolicy: {tls: {mode: SIMPLE, credentialName: c}}}
    """
    found = [f for f in findings(destination_rule(rule)) if f.code == "MSH0104"]
    assert [(f.level, f.path) for f in found] == [
        (Level.ERROR, "spec.trafficPolicy.tls.mode"),
        (Level.ERROR, "spec.subsets[0].trafficPolicy.tls.mode"),
        (Level.ERROR, "spec.subsets[1].trafficPolicy.tls.credentialName"),
    ]
    assert "PLAIN TEXT" in found[0].message
    assert "name files instead" in found[2].message


def test_what_has_no_meaning_inside_of_an_application() -> None:
    rule = """
    host: reviews
    trafficPolicy:
      proxyProtocol: {version: V2}
      retryBudget: {percent: 20, budgetInterval: 1s}
    """
    found = [f for f in findings(destination_rule(rule)) if f.code == "MSH0107"]
    assert [f.path for f in found] == [
        "spec.trafficPolicy.proxyProtocol",
        "spec.trafficPolicy.retryBudget.budgetInterval",
    ]


def test_what_the_sdk_does_not_act_on_is_said_once_for_a_document() -> None:
    rule = """
    host: reviews
    trafficPolicy:
      connectionPool: {tcp: {connectTimeout: 1s}}
      outlierDetection: {consecutive5xxErrors: 1, maxEjectionPercent: 100}
      loadBalancer: {consistentHash: {useSourceIp: true}}
    """
    route = "route: [{destination: {host: reviews}}]"
    retrying = f"""
    hosts: [reviews]
    http:
    - {{match: [{{uri: {{prefix: /a}}}}], retries: {{attempts: 0}}, {route}}}
    - {{match: [{{uri: {{prefix: /b}}}}], retries: {{attempts: 3}}, {route}}}
    - {{retries: {{attempts: 1}}, mirror: {{host: reviews}}, {route}}}
    """
    found = findings(destination_rule(rule), virtual_service(retrying))
    later = [f for f in found if f.code == "MSH0105"]
    assert {f.level for f in later} == {Level.INFO}
    assert sorted(f.path for f in later) == [
        "spec.http[1].retries",
        "spec.trafficPolicy.outlierDetection",
    ]
