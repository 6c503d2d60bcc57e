"""DestinationRule as frozen types, and how its layers of traffic policy are merged."""

# ruff: noqa: RUF012 - msgspec makes a fresh copy of an empty default
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec

from controlplane.model.duration import Duration
from controlplane.model.registry import exported_to
from controlplane.model.resource import Origin
from controlplane.model.traffic import PortSelector, Spec


class TcpKeepalive(Spec, frozen=True):
    probes: int = 0
    time: Duration | None = None
    interval: Duration | None = None


class TcpSettings(Spec, frozen=True):
    max_connections: int = 0
    connect_timeout: Duration | None = None
    tcp_keepalive: TcpKeepalive | None = None
    max_connection_duration: Duration | None = None
    idle_timeout: Duration | None = None


class Http2KeepAlive(Spec, frozen=True):
    interval: Duration | None = None
    timeout: Duration | None = None


class HttpSettings(Spec, frozen=True):
    """0 in a number means "the default" (D12)."""

    http1_max_pending_requests: int = msgspec.field(default=0, name="http1MaxPendingRequests")
    http2_max_requests: int = msgspec.field(default=0, name="http2MaxRequests")
    max_requests_per_connection: int = 0
    max_retries: int = 0
    idle_timeout: Duration | None = None
    h2_upgrade_policy: str = msgspec.field(default="DEFAULT", name="h2UpgradePolicy")
    use_client_protocol: bool = False
    max_concurrent_streams: int = 0
    http2_keep_alive: Http2KeepAlive | None = msgspec.field(default=None, name="http2KeepAlive")


class ConnectionPool(Spec, frozen=True):
    tcp: TcpSettings | None = None
    http: HttpSettings | None = None


class CookieAttribute(Spec, frozen=True):
    name: str = ""
    value: str = ""


class HttpCookie(Spec, frozen=True):
    name: str = ""
    path: str = ""
    ttl: Duration | None = None
    attributes: tuple[CookieAttribute, ...] = ()


class RingHash(Spec, frozen=True):
    minimum_ring_size: int = 0


class Maglev(Spec, frozen=True):
    table_size: int = 0


class ConsistentHash(Spec, frozen=True):
    http_header_name: str | None = None
    http_cookie: HttpCookie | None = None
    use_source_ip: bool | None = None
    http_query_parameter_name: str | None = None
    ring_hash: RingHash | None = None
    maglev: Maglev | None = None
    minimum_ring_size: int = 0


class Distribute(Spec, frozen=True):
    from_: str = msgspec.field(default="", name="from")
    to: dict[str, int] = {}


class Failover(Spec, frozen=True):
    from_: str = msgspec.field(default="", name="from")
    to: str = ""


class LocalityLb(Spec, frozen=True):
    distribute: tuple[Distribute, ...] = ()
    failover: tuple[Failover, ...] = ()
    failover_priority: tuple[str, ...] = ()
    enabled: bool | None = None


class ZoneAwareLb(Spec, frozen=True):
    enabled: bool | None = None
    failover: tuple[Failover, ...] = ()
    failover_priority: tuple[str, ...] = ()
    min_cluster_size: int | None = None


class Warmup(Spec, frozen=True):
    duration: Duration | None = None
    minimum_percent: float | None = None
    aggression: float | None = None


class BackendUtilization(Spec, frozen=True):
    error_utilization_penalty_percent: int = 0
    metric_names_for_computing_utilization: tuple[str, ...] = ()
    weight_expiration_period: Duration | None = None
    weight_stabilization_period: Duration | None = None
    weight_update_period: Duration | None = None


class LoadBalancer(Spec, frozen=True):
    simple: str | None = None
    """UNSPECIFIED, LEAST_CONN, RANDOM, PASSTHROUGH, ROUND_ROBIN or LEAST_REQUEST."""
    consistent_hash: ConsistentHash | None = None
    backend_utilization: BackendUtilization | None = None
    locality_lb_setting: LocalityLb | None = None
    zone_aware_lb_setting: ZoneAwareLb | None = None
    warmup: Warmup | None = None
    warmup_duration_secs: Duration | None = None


class OutlierDetection(Spec, frozen=True):
    consecutive_errors: int = 0
    """Deprecated, accepted and without effect."""
    split_external_local_origin_errors: bool = False
    consecutive_local_origin_failures: int | None = None
    consecutive_gateway_errors: int | None = None
    consecutive_5xx_errors: int | None = msgspec.field(default=None, name="consecutive5xxErrors")
    interval: Duration | None = None
    base_ejection_time: Duration | None = None
    max_ejection_percent: int = 0
    min_health_percent: int = 0
    outlier_detection_http_error_codes: tuple[int, ...] = ()


class ClientTls(Spec, frozen=True):
    mode: str = "DISABLE"
    """DISABLE, SIMPLE, MUTUAL or ISTIO_MUTUAL."""
    client_certificate: str = ""
    private_key: str = ""
    ca_certificates: str = ""
    credential_name: str = ""
    subject_alt_names: tuple[str, ...] = ()
    sni: str = ""
    insecure_skip_verify: bool | None = None
    ca_crl: str = ""


class PortPolicy(Spec, frozen=True):
    port: PortSelector | None = None
    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None


class Tunnel(Spec, frozen=True):
    protocol: str = ""
    target_host: str = ""
    target_port: int = 0


class ProxyProtocol(Spec, frozen=True):
    version: str = "V1"


class RetryBudget(Spec, frozen=True):
    percent: float | None = None
    min_retry_concurrency: int = 0
    budget_interval: Duration | None = None


class TrafficPolicy(Spec, frozen=True):
    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None
    port_level_settings: tuple[PortPolicy, ...] = ()
    tunnel: Tunnel | None = None
    proxy_protocol: ProxyProtocol | None = None
    retry_budget: RetryBudget | None = None


class Subset(Spec, frozen=True):
    name: str = ""
    labels: dict[str, str] = {}
    traffic_policy: TrafficPolicy | None = None


class WorkloadSelector(Spec, frozen=True):
    match_labels: dict[str, str] = {}


class DestinationRuleSpec(Spec, frozen=True):
    host: str = ""
    traffic_policy: TrafficPolicy | None = None
    subsets: tuple[Subset, ...] = ()
    export_to: tuple[str, ...] = ()
    workload_selector: WorkloadSelector | None = None


@dataclass(frozen=True, slots=True, eq=False)
class DestinationRuleConfig:
    """What the DestinationRules of one host in one namespace say together (D4)."""

    host: str
    namespace: str
    traffic_policy: TrafficPolicy | None
    subsets: tuple[Subset, ...]
    export_to: frozenset[str]
    selector: Mapping[str, str]
    created: datetime | None
    names: tuple[str, ...]
    """The rules it was merged from, oldest first."""
    origin: Origin

    def subset(self, name: str) -> Subset | None:
        return next((subset for subset in self.subsets if subset.name == name), None)

    def policy(self, port: int, subset: str = "") -> TrafficPolicy:
        """The policy in force for one cluster (D6); nothing in it is port-level any more."""
        chosen = self.subset(subset) if subset else None
        merged = merge_subset_policy(
            self.traffic_policy, chosen.traffic_policy if chosen else None, port
        )
        return merged or TrafficPolicy()

    def visible_to(self, namespace: str) -> bool:
        return exported_to(self.export_to, self.namespace, namespace)

    def __str__(self) -> str:
        return "DestinationRule " + ", ".join(f"{self.namespace}/{name}" for name in self.names)


_BLOCKS = ("connection_pool", "outlier_detection", "load_balancer", "tls")
_WHOLE_ONLY = ("proxy_protocol", "retry_budget", "tunnel")


def merge_subset_policy(
    top: TrafficPolicy | None, subset: TrafficPolicy | None, port: int
) -> TrafficPolicy | None:
    """Lays a subset's policy over the rule's for one port (D6).

    Settings of the port replace connection pool, outlier detection, balancing and TLS wholesale:
    what they leave out is unset, not inherited. Source: Istio MergeSubsetTrafficPolicy.
    """
    base = _at_port(top, port)
    if subset is None:
        return base
    if base is None:
        return _at_port(subset, port)
    names = (*_BLOCKS, *_WHOLE_ONLY)
    changed = {name: value for name in names if (value := getattr(subset, name)) is not None}
    settings = _port_settings(subset, port)
    if settings is not None:
        changed |= {name: getattr(settings, name) for name in _BLOCKS}
    return msgspec.structs.replace(base, **changed)


def with_default(policy: TrafficPolicy, default: TrafficPolicy | None) -> TrafficPolicy:
    """Fills in the blocks that the mesh has a default for and the policy does not have."""
    if default is None:
        return policy
    return msgspec.structs.replace(
        policy,
        connection_pool=policy.connection_pool or default.connection_pool,
        outlier_detection=policy.outlier_detection or default.outlier_detection,
    )


def _port_settings(policy: TrafficPolicy, port: int) -> PortPolicy | None:
    for settings in policy.port_level_settings:
        if settings.port is not None and settings.port.number == port:
            return settings
    return None


def _at_port(policy: TrafficPolicy | None, port: int) -> TrafficPolicy | None:
    if policy is None:
        return None
    settings = _port_settings(policy, port)
    if settings is None:
        return msgspec.structs.replace(policy, port_level_settings=())
    blocks = {name: getattr(settings, name) for name in _BLOCKS}
    return msgspec.structs.replace(policy, port_level_settings=(), **blocks)
