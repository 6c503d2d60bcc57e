"""The user's mesh config from its documents, laid over the defaults (M10). Pure.

Two documents carry it: ConfigMap `istio` (`data.mesh`, YAML text) and an IstioOperator
(`spec.meshConfig`). A field that Istio does not have is a warning, since Istio passes over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from controlplane.model.decode import decode
from controlplane.model.documents import DocumentError, split
from controlplane.model.duration import Duration
from controlplane.model.meshconfig import ALLOW_ANY, REGISTRY_ONLY, MeshConfig
from controlplane.model.policy import LocalityLb, TcpKeepalive, TrafficPolicy, ZoneAwareLb
from controlplane.model.resource import Finding, Level, Resource
from controlplane.model.schema import suggest, type_name, without_nulls
from controlplane.model.traffic import HTTPRetry
from controlplane.model.validation.checks import Checker
from controlplane.model.validation.meshconfig import check_mesh_config

# Source: istio/api mesh/v1alpha1/config.proto.
KNOWN_FIELDS = frozenset(
    [
        "proxyListenPort",
        "proxyInboundListenPort",
        "proxyHttpPort",
        "connectTimeout",
        "tcpKeepalive",
        "ingressClass",
        "ingressService",
        "ingressControllerMode",
        "ingressSelector",
        "enableTracing",
        "accessLogFile",
        "accessLogFormat",
        "accessLogEncoding",
        "enableEnvoyAccessLogService",
        "disableEnvoyListenerLog",
        "defaultConfig",
        "outboundTrafficPolicy",
        "inboundTrafficPolicy",
        "configSources",
        "enableAutoMtls",
        "trustDomain",
        "trustDomainAliases",
        "caCertificates",
        "defaultServiceExportTo",
        "defaultVirtualServiceExportTo",
        "defaultDestinationRuleExportTo",
        "rootNamespace",
        "localityLbSetting",
        "dnsRefreshRate",
        "h2UpgradePolicy",
        "inboundClusterStatName",
        "outboundClusterStatName",
        "certificates",
        "enablePrometheusMerge",
        "verifyCertificateAtClient",
        "ca",
        "extensionProviders",
        "defaultProviders",
        "discoverySelectors",
        "pathNormalization",
        "defaultHttpRetryPolicy",
        "meshMTLS",
        "tlsDefaults",
        "protocolDetectionTimeout",
        "serviceSettings",
        "thriftConfig",
        "serviceScopeConfigs",
        "defaultTrafficPolicy",
        "defaultInboundHttpRetryPolicy",
        "zoneAwareLbSetting",
        "sdsUdsPath",
        "enableSdsTokenMount",
        "policyCheckFailOpen",
        "disablePolicyChecks",
        "reportBatchMaxEntries",
        "reportBatchMaxTime",
        "mixerCheckServer",
        "mixerReportServer",
        "sidecarToTelemetrySessionAffinity",
        "enableClientSidePolicyCheck",
        "disableMixerHttpReports",
        "localityLbSettings",
        "hboneIdleTimeout",
        "xdsConnectionIdleTimeout",
    ]
)
_POLICIES: Mapping[str, frozenset[str]] = {
    "outboundTrafficPolicy": frozenset(["mode", "egressProxy"]),
    "inboundTrafficPolicy": frozenset(["mode"]),
}
"""Fields of those messages in which one that is passed over leaves the mesh open."""
CONFIG_MAP = "istio"
CONFIG_NAMESPACE = "istio-system"


def is_mesh_config(resource: Resource) -> bool:
    """Whether a document carries mesh config.

    A ConfigMap of another namespace is somebody else's; one without any is the user's own.
    """
    if resource.kind == "ConfigMap" and resource.name == CONFIG_MAP:
        if resource.metadata.get("namespace", CONFIG_NAMESPACE) != CONFIG_NAMESPACE:
            return False
        data = resource.document.get("data")
        return isinstance(data, dict) and "mesh" in data
    return resource.kind == "IstioOperator" and "meshConfig" in resource.spec


def mesh_config(
    resources: Iterable[Resource], domain: str = "cluster.local"
) -> tuple[MeshConfig, list[Finding]]:
    """The settings in force, and what is wrong in their documents.

    Documents are laid over each other in the order ConfigMap, IstioOperator, each by age.
    """
    findings: list[Finding] = []
    merged: dict[str, Any] = {}
    carriers: list[Resource] = []
    for resource in resources:
        if is_mesh_config(resource):
            carriers.append(resource)
        elif resource.kind == "ConfigMap" and resource.name == CONFIG_MAP:
            problem = f"mesh config is read from namespace {CONFIG_NAMESPACE}: this has no effect"
            findings.append(resource.finding(Level.WARNING, "MSH0106", problem, "data.mesh"))
    for resource in sorted(carriers, key=lambda res: (res.kind != "ConfigMap", res.age_key)):
        section, path = _section(resource, findings)
        for name, known in unknown_fields(section):
            problem = (
                f"unknown field{suggest(name.rpartition('.')[2], known)}, Istio passes over it"
            )
            findings.append(resource.finding(Level.WARNING, "", problem, f"{path}.{name}"))
        reader = _Fields(section, resource, path, findings)
        reader.read()
        sound = {k: v for k, v in section.items() if k not in reader.broken}
        findings += _checked(resource, sound, path)
        merged = lay(merged, sound)
    mesh = MeshConfig(domain=domain, raw=merged, **_Fields(merged, None, "", []).read())
    return mesh, findings


def unknown_fields(section: Mapping[str, Any]) -> Iterator[tuple[str, frozenset[str]]]:
    """The path of each field that Istio does not have, and those that it has in its place."""
    for name, value in section.items():
        if name not in KNOWN_FIELDS:
            yield name, KNOWN_FIELDS
        inner = _POLICIES.get(name)
        if inner is not None and isinstance(value, dict):
            yield from ((f"{name}.{each}", inner) for each in value if each not in inner)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged field by field, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        known = result.get(key)
        both = isinstance(known, dict) and isinstance(value, dict)
        result[key] = merge(known or {}, value) if both else value
    return result


def lay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """One mesh config over another: extension providers by name, trust domain aliases united.

    Source: Istio pkg/config/mesh ApplyMeshConfig.
    """
    result = merge(base, over)
    providers = [*(base.get("extensionProviders") or ()), *(over.get("extensionProviders") or ())]
    if providers and all(isinstance(provider, dict) for provider in providers):
        by_name = {provider.get("name"): provider for provider in providers}
        result["extensionProviders"] = list(by_name.values())
    aliases = [*(base.get("trustDomainAliases") or ()), *(over.get("trustDomainAliases") or ())]
    if aliases and all(isinstance(alias, str) for alias in aliases):
        result["trustDomainAliases"] = sorted(set(aliases))
    return result


def _checked(resource: Resource, section: Mapping[str, Any], path: str) -> list[Finding]:
    check = Checker(resource)
    check_mesh_config(check, section, path)
    errors = [resource.finding(Level.ERROR, "", message, place) for place, message in check.errors]
    warnings = [
        resource.finding(Level.WARNING, code, message, place)
        for place, code, message in check.warnings
    ]
    return [*errors, *warnings]


def _section(resource: Resource, findings: list[Finding]) -> tuple[dict[str, Any], str]:
    if resource.kind == "IstioOperator":
        path, value = "spec.meshConfig", resource.spec["meshConfig"]
    else:
        path, value = "data.mesh", resource.document["data"]["mesh"]
        try:
            if not isinstance(value, str):
                raise DocumentError(0, f"must be text, not {type_name(value)}")
            value = next((chunk.load() for chunk in split(value)), None)
        except DocumentError as error:
            findings.append(resource.finding(Level.ERROR, "", error.problem, path))
            return {}, path
    if value is None:
        return {}, path
    if not isinstance(value, dict):
        problem = f"must be a mapping, not {type_name(value)}"
        findings.append(resource.finding(Level.ERROR, "", problem, path))
        return {}, path
    return without_nulls(value), path


class _Fields:
    """Reads the fields that `MeshConfig` has an attribute for."""

    def __init__(
        self,
        section: Mapping[str, Any],
        resource: Resource | None,
        path: str,
        findings: list[Finding],
    ) -> None:
        self.section = section
        self.resource = resource
        self.path = path
        self.findings = findings
        self.broken: set[str] = set()

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for attribute, (name, convert) in _FIELDS.items():
            value: Any = self.section
            top = name.partition(".")[0]
            try:
                for part in name.split("."):
                    value = value.get(part) if value is not None else None
                if value is not None:
                    found[attribute] = convert(value)
            except (ValueError, AttributeError, TypeError, msgspec.ValidationError) as error:
                self.broken.add(top)
                if self.resource is not None:
                    self.findings.append(
                        self.resource.finding(
                            Level.ERROR, "", _words(error, value), f"{self.path}.{name}"
                        )
                    )
        return found


def _words(error: Exception, value: Any) -> str:
    if isinstance(error, AttributeError):
        return f"must be a mapping, not {type_name(value)}"
    return str(error)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {type_name(value)}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {type_name(value)}")
    return value


def _seconds(value: Any) -> float:
    seconds = float(Duration.parse(_text(value)))
    if seconds < 0:
        raise ValueError(f"{value} is negative")
    return seconds


def _retry(value: Any) -> HTTPRetry:
    retry: HTTPRetry = decode(value, HTTPRetry)
    if not 0 <= retry.attempts < 2**31:
        raise ValueError(f"{retry.attempts} is not a number of attempts")
    for name, time in (("perTryTimeout", retry.per_try_timeout), ("backoff", retry.backoff)):
        if time is not None and time < 0.001:
            raise ValueError(f"{name} must be at least 1ms")
    return retry


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"must be a list, not {type_name(value)}")
    return tuple(_text(item) for item in value)


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"must be a mapping, not {type_name(value)}")
    return value


def _providers(value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list):
        raise ValueError(f"must be a list, not {type_name(value)}")
    return tuple(_mapping(item) for item in value)


def _choice(*choices: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError(
                f"{value!r} is not one of {', '.join(choices)}{suggest(str(value), choices)}"
            )
        return str(value)

    return convert


def _exports(value: Any) -> frozenset[str]:
    return frozenset(_texts(value)) or frozenset("*")


_FIELDS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "root_namespace": ("rootNamespace", _text),
    "trust_domain": ("trustDomain", _text),
    "trust_domain_aliases": ("trustDomainAliases", _texts),
    "outbound_policy": ("outboundTrafficPolicy.mode", _choice(ALLOW_ANY, REGISTRY_ONLY)),
    "inbound_policy": ("inboundTrafficPolicy.mode", _choice("PASSTHROUGH", "LOCALHOST")),
    "auto_mtls": ("enableAutoMtls", _flag),
    "connect_timeout": ("connectTimeout", _seconds),
    "dns_refresh_rate": ("dnsRefreshRate", _seconds),
    "protocol_detection_timeout": ("protocolDetectionTimeout", _seconds),
    "default_service_export_to": ("defaultServiceExportTo", _exports),
    "default_virtual_service_export_to": ("defaultVirtualServiceExportTo", _exports),
    "default_destination_rule_export_to": ("defaultDestinationRuleExportTo", _exports),
    "locality_lb": ("localityLbSetting", lambda value: decode(value, LocalityLb)),
    "zone_aware_lb": ("zoneAwareLbSetting", lambda value: decode(value, ZoneAwareLb)),
    "default_traffic_policy": (
        "defaultTrafficPolicy",
        lambda value: decode(value, TrafficPolicy),
    ),
    "h2_upgrade": (
        "h2UpgradePolicy",
        lambda value: _choice("UPGRADE", "DO_NOT_UPGRADE")(value) == "UPGRADE",
    ),
    "tcp_keepalive": ("tcpKeepalive", lambda value: decode(value, TcpKeepalive)),
    "default_http_retry": ("defaultHttpRetryPolicy", _retry),
    "access_log_file": ("accessLogFile", _text),
    "access_log_format": ("accessLogFormat", _text),
    "access_log_encoding": ("accessLogEncoding", _choice("TEXT", "JSON")),
    "enable_tracing": ("enableTracing", _flag),
    "prometheus_merge": ("enablePrometheusMerge", _flag),
    "extension_providers": ("extensionProviders", _providers),
    "default_providers": ("defaultProviders", _mapping),
    "proxy_defaults": ("defaultConfig", _mapping),
}
