"""Mesh-wide settings: Istio's MeshConfig with its defaults (semantics A0)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from controlplane.model.policy import LocalityLb, TcpKeepalive, TrafficPolicy, ZoneAwareLb
from controlplane.model.traffic import HTTPRetry

ALLOW_ANY = "ALLOW_ANY"
REGISTRY_ONLY = "REGISTRY_ONLY"
DEFAULT_LOCALITY_LB = LocalityLb(enabled=True)


@dataclass(frozen=True, slots=True, eq=False)
class MeshConfig:
    """The user's mesh config laid over Istio's defaults; times are seconds."""

    root_namespace: str = "istio-system"
    trust_domain: str = "cluster.local"
    trust_domain_aliases: tuple[str, ...] = ()
    domain: str = "cluster.local"
    """DNS suffix of Kubernetes names; a flag of the server, not a field of MeshConfig."""
    outbound_policy: str = ALLOW_ANY
    """ALLOW_ANY or REGISTRY_ONLY."""
    inbound_policy: str = "PASSTHROUGH"
    auto_mtls: bool = True
    connect_timeout: float = 10.0
    dns_refresh_rate: float = 60.0
    protocol_detection_timeout: float = 0.0
    default_service_export_to: frozenset[str] = frozenset("*")
    default_virtual_service_export_to: frozenset[str] = frozenset("*")
    default_destination_rule_export_to: frozenset[str] = frozenset("*")
    locality_lb: LocalityLb = DEFAULT_LOCALITY_LB
    zone_aware_lb: ZoneAwareLb | None = None
    default_traffic_policy: TrafficPolicy | None = None
    """connectionPool and outlierDetection of clusters whose DestinationRule says nothing of it."""
    h2_upgrade: bool = False
    tcp_keepalive: TcpKeepalive | None = None
    default_http_retry: HTTPRetry | None = None
    """None: Istio's own default (V16)."""
    access_log_file: str = ""
    access_log_format: str = ""
    access_log_encoding: str = "TEXT"
    enable_tracing: bool = True
    prometheus_merge: bool = True
    extension_providers: tuple[Mapping[str, Any], ...] = ()
    default_providers: Mapping[str, Any] = field(default_factory=dict)
    proxy_defaults: Mapping[str, Any] = field(default_factory=dict)
    """`defaultConfig`: the mesh-wide ProxyConfig, as written."""
    raw: Mapping[str, Any] = field(default_factory=dict)
    """Everything, merged, under its proto-JSON names: for fields that have no attribute here."""
