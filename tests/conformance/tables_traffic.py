"""Istio's decision tables of routes, clusters, names and mesh config: one function per table."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from envoy.config.route.v3 import route_components_pb2 as rc
from google.protobuf import json_format

from controlplane.model import meshmerge
from controlplane.model.decode import decode
from controlplane.model.hosts import bracketed, interface, is_address
from controlplane.model.parse import load_text, parse_text
from controlplane.model.policy import OutlierDetection, TrafficPolicy, with_default
from controlplane.model.ports import parse_protocol
from controlplane.model.registry import Locality, Protocol, Resolution, Service, ServicePort
from controlplane.model.resource import Resource
from controlplane.model.traffic import HTTPFault, HTTPMatch, MirrorPolicy, TCPMatch, TLSMatch
from controlplane.model.validation import conditions, destinationrule, meshconfig
from controlplane.model.validation.checks import Checker
from controlplane.translate import layer4, limits, proxyless, routes
from controlplane.translate import resources as xds
from controlplane.translate.filters import fault_filter
from controlplane.translate.localities import locality_matches
from controlplane.translate.matches import applies, is_catch_all
from controlplane.translate.node import Dialect, Variant
from controlplane.translate.scope import ClusterName, Scope
from controlplane.translate.wire import fraction
from controlplane.world import World
from tests.support.controlplane import make_node

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "istio" / "tables"
Case = dict[str, Any]


def scope_of(namespace: str, labels: Mapping[str, str] | None, world: World | None = None) -> Scope:
    variant = Variant(Dialect.SDK, namespace, frozenset((labels or {}).items()))
    return Scope(world or World.build([], analyze=False), variant)


def checked(function: Callable[[Checker], object]) -> Checker:
    checker = Checker(Resource("X", "v1", "x", "default"))
    function(checker)
    return checker


# --- routes ----------------------------------------------------------------------------------


def catch_all_route(case: Case) -> None:
    text = json.dumps(case["route"]["match"]).replace('"exactMatch"', '"exact_match"')
    match = json_format.Parse(text, rc.RouteMatch())
    assert is_catch_all(match) == case["want"]


def mirror_percent_by_policy(case: Case) -> None:
    policy = decode(case["policy"], MirrorPolicy)
    share = fraction(policy.percentage, absent=100)
    want = (case["want"] or {}).get("defaultValue")
    scale = {"HUNDRED": 100, "TEN_THOUSAND": 10_000, "MILLION": 1_000_000}
    expected = 0.0 if want is None else want.get("numerator", 0) / scale[want["denominator"]]
    assert share.numerator / 1_000_000 == pytest.approx(expected)


def _speaking_to(match: Case, gateways: Any) -> Case:
    """The match with the gateways that the case calls ours named as the mesh is."""
    ours = set(gateways or ())
    named = ["mesh" if name in ours else f"other/{name}" for name in match.get("gateways", ())]
    return {**match, "gateways": named} if named else match


def source_match_http(case: Case) -> None:
    args = case["args"]
    asked = args.get("match")
    match = decode(_speaking_to(asked, args.get("gatewayNames")), HTTPMatch) if asked else None
    scope = scope_of(args.get("proxyNamespace", ""), args.get("proxyLabels"))
    assert (match is None or applies(match, ("mesh",), 80, scope)) == case["want"]


def _layer4(kind: type[TLSMatch | TCPMatch], case: Case) -> None:
    args = case["args"]
    asked = args.get("match")
    scope = scope_of(args.get("namespace", args.get("proxyNamespace", "")), args.get("proxyLabels"))
    ours = args.get("gateways")
    match: Any = decode(_speaking_to(asked, ours), kind) if asked else None
    holds = match is None or layer4.applies(match, ("mesh",), args.get("port", 0), scope)
    assert holds == case["want"]


def translate_fault(case: Case) -> None:
    asked = case.get("in", case.get("fault"))
    found = fault_filter(decode(asked, HTTPFault)) if asked else None
    want = case.get("want", case.get("out"))
    got = json_format.MessageToDict(found) if found is not None else None
    assert _numbers(got) == _numbers(want)


def _numbers(value: Any) -> Any:
    """Percentages are compared as shares."""
    scale = {"HUNDRED": 100, "TEN_THOUSAND": 10_000, "MILLION": 1_000_000}
    if isinstance(value, dict):
        if value.keys() & {"numerator", "denominator"}:
            return value.get("numerator", 0) / scale[value.get("denominator", "HUNDRED")]
        return {key: _numbers(item) for key, item in value.items()}
    return value


# --- sidecars' route configurations ------------------------------------------------------------

_BUILD = re.compile(
    r'buildHTTPService\("([^"]+)", visibility\.(\w+), ([^,]+), "([^"]+)", ([\d, ]+)'
)


@functools.cache
def _services() -> tuple[Service, ...]:
    fixture = json.loads((DATA / "fixtures.json").read_text())
    text = fixture["TestSidecarOutboundHTTPRouteConfig"]["services"]["$go"]
    found = []
    for host, visible, address, namespace, ports in _BUILD.findall(text):
        addresses = () if address == "wildcardIPv4" or address == '""' else (address.strip('"'),)
        found.append(
            Service(
                hostname=host.lower(),
                name=host.partition(".")[0],
                namespace=namespace,
                ports=tuple(
                    ServicePort(f"http-{number}", int(number), Protocol.HTTP)
                    for number in ports.split(",")
                ),
                addresses=addresses,
                resolution=Resolution.CLIENT_SIDE,
                headless=address == "wildcardIPv4",
                export_to=frozenset("*" if visible == "Public" else "."),
            )
        )
    return tuple(found)


def sidecar_route_config(case: Case) -> None:
    """A sidecar's configuration of one port is here one for each host; together they are it."""
    world = _sidecar_world(case)
    scope = scope_of("not-default", {}, world)
    port = int(case["routeName"])
    found: dict[str, set[str]] = {}
    for service in scope.services_called(port):
        known = service.port(port)
        if known is not None:
            config = routes.service_route("x", service, service, known, scope)
            found[config.virtual_hosts[0].name] = _hosts_of(config.virtual_hosts[0], port)
    for rule in world.virtual_services("not-default"):
        for host in rule.hosts:
            config = proxyless.route(scope, f"{host}:{port}")
            if config is not None and not host.startswith("*"):
                found[config.virtual_hosts[0].name] = _hosts_of(config.virtual_hosts[0], port)
    (rest,) = routes.others(scope)
    found[rest.name] = set(rest.domains)
    want = {
        _full(name): {_full(host) for host in hosts if not host.startswith("*.")}
        for name, hosts in case["expectedHosts"].items()
    }
    assert found == want
    for name, hosts in case["expectedHosts"].items():
        for host in hosts:
            if host.startswith("*."):  # the pods of a headless service
                listener = proxyless.listener(scope, f"pod-0{host[1:].rstrip('.')}:{port}")
                assert "allow_any" in str(listener), name


def _full(name: str) -> str:
    """Short names get no domain in the test of origin."""
    host, colon, port = name.lower().partition(":")
    return (
        f"{host}.svc.cluster.local{colon}{port}" if host.endswith(".not-default") else name.lower()
    )


def _hosts_of(host: rc.VirtualHost, port: int) -> set[str]:
    return {domain for domain in host.domains if not domain.endswith(f":{port}")}


def _sidecar_world(case: Case) -> World:
    mode = "REGISTRY_ONLY" if case["registryOnly"] else "ALLOW_ANY"
    documents: list[Case] = [
        {
            "apiVersion": "install.istio.io/v1alpha1",
            "kind": "IstioOperator",
            "metadata": {"name": "mesh"},
            "spec": {"meshConfig": {"outboundTrafficPolicy": {"mode": mode}}},
        }
    ]
    for config in (case["sidecarConfig"], *(case["virtualServiceConfigs"] or ())):
        if config is not None:
            kind = config["meta"].pop("groupVersionKind", config["meta"].get("kind"))
            metadata = {name: config["meta"][name] for name in ("name", "namespace")}
            config["meta"]["groupVersionKind"] = kind
            documents.append(
                {
                    "apiVersion": "networking.istio.io/v1",
                    "kind": kind,
                    "metadata": metadata,
                    "spec": _without_sockets(config["spec"]),
                }
            )
    world = World.build(load_text("\n---\n".join(map(json.dumps, documents))), analyze=False)
    services = _services()
    by_host: dict[str, tuple[Service, ...]] = {}
    for service in services:
        by_host[service.hostname] = (*by_host.get(service.hostname, ()), service)
    return dataclasses.replace(world, services=services, _by_host=by_host)


def _without_sockets(spec: Case) -> Case:
    """Without listeners on Unix sockets: their paths would not pass validation."""
    egress = [
        item for item in spec.get("egress", ()) if not item.get("bind", "").startswith("unix")
    ]
    return {**spec, "egress": egress} if "egress" in spec else spec


# --- clusters --------------------------------------------------------------------------------


def _flat(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("_", "").lower(): item for key, item in value.items()}


def apply_outlier_detection(case: Case) -> None:
    if case["cfg"] is None:
        return
    found = json_format.MessageToDict(limits.outlier(decode(case["cfg"], OutlierDetection)))
    assert _flat(found) == _flat(case["o"] or {})


def _cluster(balancer: Case | None, resolution: str = "STATIC", **policy: Any) -> dict[str, Any]:
    """The cluster of a ServiceEntry with one policy."""
    host = "x.example.com"
    entry: Case = {
        "hosts": [host],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        "resolution": resolution,
    }
    if resolution != "NONE":
        entry["endpoints"] = [{"address": "10.0.0.1", "locality": "a/b/c"}]
    traffic = {**policy, **({"loadBalancer": balancer} if balancer else {})}
    rule: Case = {"host": host, **({"trafficPolicy": traffic} if traffic else {})}
    documents = [
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": kind,
            "metadata": {"name": "x", "namespace": "default"},
            "spec": spec,
        }
        for kind, spec in (("ServiceEntry", entry), ("DestinationRule", rule))
    ]
    world = World.build(load_text("\n---\n".join(map(json.dumps, documents))), analyze=False)
    message = xds.cluster(world, make_node(), str(ClusterName(80, "", host)))
    found: dict[str, Any] = json_format.MessageToDict(message)  # type: ignore[arg-type]
    return found


def _slow_start(found: Mapping[str, Any]) -> Any:
    for name in ("leastRequestLbConfig", "roundRobinLbConfig"):
        if name in found:
            return found[name].get("slowStartConfig")
    return None


_WARMABLE = ("", "UNSPECIFIED", "ROUND_ROBIN", "LEAST_REQUEST", "LEAST_CONN")


def slow_start_config(case: Case) -> None:
    kind = case.get("lbType", "")
    balancer: Case = {"simple": kind} if kind else {}
    asked = case["enableSlowStartMode"] and kind in _WARMABLE
    if asked:  # for others validation refuses it
        balancer["warmupDurationSecs"] = "15s"
    found = _slow_start(_cluster(balancer, "NONE" if kind == "PASSTHROUGH" else "STATIC"))
    assert (found is not None) == asked


def warmup(case: Case) -> None:
    kind = case.get("lbType", "")
    asked = case["warmup"] if kind in _WARMABLE else None
    balancer: Case = {"simple": kind} if kind else {}
    if asked:
        balancer["warmup"] = asked
    found = _slow_start(_cluster(balancer))
    assert (found is not None) == (asked is not None)
    if asked:
        assert found["slowStartWindow"] == asked["duration"]
        assert found["minWeightPercent"]["value"] == asked.get("minimumPercent", 10)
        assert found["aggression"]["defaultValue"] == asked.get("aggression", 1)


_RESOLUTIONS = {
    "STRICT_DNS": "DNS",
    "LOGICAL_DNS": "DNS_ROUND_ROBIN",
    "ORIGINAL_DST": "NONE",
    "EDS": "STATIC",
    "STATIC": "STATIC",
}


def apply_load_balancer(case: Case) -> None:
    settings = case.get("lbSettings")
    found = _cluster(settings, _RESOLUTIONS[case.get("discoveryType", "EDS")])
    assert found.get("lbPolicy", "ROUND_ROBIN") == case["expectedLbPolicy"]
    if case.get("expectClusterLoadAssignmenttoBeNil"):
        assert "loadAssignment" not in found
    weighted = "localityWeightedLbConfig" in found.get("commonLbConfig", {})
    assert weighted == case.get("expectedLocalityWeightedConfig", False)


def apply_default_traffic_policy(case: Case) -> None:
    def policy(value: Any) -> TrafficPolicy | None:
        return None if value is None else decode(value, TrafficPolicy)

    found = with_default(
        policy(case.get("policy")) or TrafficPolicy(), policy(case.get("meshDefault"))
    )
    pool, outlier = case.get("wantConnPool"), case.get("wantOutlier")
    want = policy({"connectionPool": pool, "outlierDetection": outlier})
    assert want is not None
    assert found.connection_pool == want.connection_pool
    assert found.outlier_detection == want.outlier_detection


def locality_match(case: Case) -> None:
    place = case["locality"]
    locality = Locality(*(place.get(name, "") for name in ("region", "zone", "subZone")))
    assert locality_matches(locality, case["rule"]) == case.get("match", False)


# --- names -----------------------------------------------------------------------------------

_NAMES = {
    "Unsupported": Protocol.UNSUPPORTED,
    "GRPCWeb": Protocol.GRPC_WEB,
    **{protocol.value: protocol for protocol in Protocol},
}


def parse_a_protocol(case: Case) -> None:
    assert parse_protocol(case["name"]) is _NAMES[case["out"]]


def subset_key(case: Case) -> None:
    found = ClusterName.parse(case["input"])
    parts = (found.subset, found.host, found.port) if found else ("", "", 0)
    assert parts == (case["subsetName"], case["hostname"], case["port"])


def subset_key_hostname(case: Case) -> None:
    found = ClusterName.parse(case["in"])
    assert (found.host if found else "") == case["out"]


def address_to_cidr(case: Case) -> None:
    want = case["want"]
    found = interface(case["addr"])
    if want is None:
        assert found is None
    else:
        assert found is not None
        assert str(found.ip) == want["addressPrefix"]
        assert found.network.prefixlen == want["prefixLen"]


def ip_address(case: Case) -> None:
    assert is_address(case["addr"]) == case["ok"]


def ipv6_compliant(case: Case) -> None:
    host = case["host"]
    assert bracketed(host) == case["match"]


# --- mesh config and values --------------------------------------------------------------------


def deep_merge(case: Case) -> None:
    """Istio lays it over a mesh config that has one provider and two aliases."""
    base = {
        "defaultProviders": {"metrics": ["stackdriver"]},
        "extensionProviders": [
            {"name": "stackdriver", "stackdriver": {"maxNumberOfAttributes": 3}}
        ],
        "trustDomainAliases": ["default", "both"],
    }
    assert meshmerge.lay(base, yaml.safe_load(case["in"]) or {}) == yaml.safe_load(case["out"])


def proxy_config_merge(case: Case) -> None:
    base, overlay = yaml.safe_load(case["base"]), yaml.safe_load(case["overlay"])
    found = meshmerge.merge({"defaultConfig": base or {}}, {"defaultConfig": overlay or {}})
    assert found["defaultConfig"] == (yaml.safe_load(case["result"]) or {})


def locality_zone_aware(case: Case) -> None:
    document = {
        "apiVersion": "install.istio.io/v1alpha1",
        "kind": "IstioOperator",
        "metadata": {"name": "mesh"},
        "spec": {"meshConfig": yaml.safe_load(case["yaml"]) or {}},
    }
    mesh, findings = meshmerge.mesh_config(load_text(json.dumps(document)))
    assert findings == []
    if "wantLocEnabled" in case:
        assert (mesh.locality_lb.enabled is not False) == case["wantLocEnabled"]
    assert (mesh.zone_aware_lb is not None) == case.get("wantZoneAware", False)
    if "wantZAEnabled" in case and mesh.zone_aware_lb is not None:
        assert (mesh.zone_aware_lb.enabled is not False) == case["wantZAEnabled"]
    assert mesh.locality_lb is not None or not case.get("wantLocality", False)


def trust_domain(case: Case) -> None:
    assert (meshconfig.trust_domain_problem(case["in"]) is not None) == bool(case["err"])


def default_traffic_policy(case: Case) -> None:
    found = checked(lambda c: meshconfig.check_default_traffic_policy(c, case["dtp"] or {}, ""))
    assert bool(found.errors) == case.get("wantErr", False), found.errors


def inbound_retry_policy(case: Case) -> None:
    found = checked(lambda c: meshconfig.check_inbound_retries(c, case["retry"] or {}, ""))
    assert bool(found.errors) == case.get("wantErr", False), found.errors
    assert bool(found.warnings) == case.get("wantWarn", False), found.warnings


def connection_settings(case: Case) -> None:
    found = checked(lambda c: meshconfig.check_connection_settings(c, case["cs"] or {}, ""))
    assert bool(found.errors) == case.get("wantErr", False), found.errors


def service_settings(case: Case) -> None:
    setting = {"hosts": case["hosts"]}
    found = checked(lambda c: meshconfig.check_service_setting(c, setting, ""))
    assert (not found.errors) == case["valid"], found.errors


def client_tls(case: Case) -> None:
    found = checked(lambda c: destinationrule.check_client_tls(c, case["tls"], ""))
    assert (not found.errors) == case["valid"], found.errors


def http_status(case: Case) -> None:
    route = {"fault": {"abort": {"httpStatus": case["in"]}}, "route": [{"destination": {}}]}
    route["route"][0]["destination"]["host"] = "x.example.com"  # type: ignore[index]
    document = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "x"},
        "spec": {"hosts": ["x.example.com"], "http": [route]},
    }
    assert (not parse_text(json.dumps(document)).errors) == case["valid"]


def wildcard_values(case: Case) -> None:
    problems = [conditions.wildcard_problem(value) for value in case["values"]]
    assert any(problems) == case.get("wantError", False)


def trust_domain_values(case: Case) -> None:
    problems = [conditions.trust_domain_problem(value) for value in case["values"]]
    assert any(problems) == case.get("wantError", False)


TRAFFIC: dict[str, Callable[[Case], None]] = {
    "TestIsCatchAllRoute": catch_all_route,
    "TestMirrorPercentByPolicy": mirror_percent_by_policy,
    "TestSourceMatchHTTP": source_match_http,
    "TestMatchTLS": functools.partial(_layer4, TLSMatch),
    "TestMatchTCP": functools.partial(_layer4, TCPMatch),
    "TestTranslateFault": translate_fault,
    "TestSidecarOutboundHTTPRouteConfig": sidecar_route_config,
    "TestApplyOutlierDetection": apply_outlier_detection,
    "TestSlowStartConfig": slow_start_config,
    "TestWarmup": warmup,
    "TestApplyLoadBalancer": apply_load_balancer,
    "TestApplyDefaultTrafficPolicy": apply_default_traffic_policy,
    "TestLocalityMatch": locality_match,
    "TestParse": parse_a_protocol,
    "TestParseSubsetKey": subset_key,
    "TestParseSubsetKeyHostname": subset_key_hostname,
    "TestConvertAddressToCidr": address_to_cidr,
    "TestValidationIPAddress": ip_address,
    "TestIPv6Compliant": ipv6_compliant,
    "TestDeepMerge": deep_merge,
    "TestProxyConfigMerge": proxy_config_merge,
    "TestApplyMeshConfigLocalityZoneAware": locality_zone_aware,
    "TestValidateTrustDomain": trust_domain,
    "TestValidateMeshConfigDefaultTrafficPolicy": default_traffic_policy,
    "TestValidateMeshConfigDefaultInboundHTTPRetryPolicy": inbound_retry_policy,
    "TestValidateConnectionSettings": connection_settings,
    "TestServiceSettings": service_settings,
    "TestValidateTLS": client_tls,
    "TestValidateHTTPStatus": http_status,
    "TestCheckWildcardValues": wildcard_values,
    "TestCheckTrustDomainValues": trust_domain_values,
}
