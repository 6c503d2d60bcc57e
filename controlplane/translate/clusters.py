"""Clusters from services and DestinationRules; shared by every dialect (D6 to D18, S7, S8)."""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2 as cl
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2 as hpo

from controlplane.model.policy import (
    ConnectionPool,
    HttpSettings,
    LoadBalancer,
    OutlierDetection,
    TcpSettings,
    TrafficPolicy,
)
from controlplane.translate.endpoints import assignment
from controlplane.translate.node import Dialect
from controlplane.translate.scope import ClusterName, Scope
from controlplane.translate.wire import ads, duration, pack
from controlplane.world import Endpoint, Resolution, Service, ServicePort

_UNLIMITED = 2**32 - 1
_MIN_RING_SIZE = 1024
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_DNS = frozenset({Resolution.DNS, Resolution.DNS_ROUND_ROBIN, Resolution.DYNAMIC_DNS})
_SIMPLE = {
    "ROUND_ROBIN": cl.Cluster.ROUND_ROBIN,
    "RANDOM": cl.Cluster.RANDOM,
    "LEAST_REQUEST": cl.Cluster.LEAST_REQUEST,
    "LEAST_CONN": cl.Cluster.LEAST_REQUEST,
}


def service_cluster(
    name: ClusterName, service: Service, port: ServicePort, scope: Scope
) -> cl.Cluster | None:
    """The cluster of one port and subset of a service.

    None when the subset is not defined, or when this node cannot use such a cluster.
    """
    endpoints = scope.endpoints(service, port, name.subset)
    if endpoints is None:
        return None
    policy = scope.policy(service, port.number, name.subset)
    balancer = policy.load_balancer or LoadBalancer()
    out = cl.Cluster(name=str(name))
    if not _discovery(out, service, port, endpoints, balancer, scope):
        return None
    _balance(out, balancer, scope)
    _pool(out, policy.connection_pool or ConnectionPool(), port, scope)
    if policy.outlier_detection is not None:
        _outlier(out, policy.outlier_detection, scope)
    _unserved(policy, name, scope)
    metadata = {"host": service.hostname, "name": service.name, "namespace": service.namespace}
    out.metadata.filter_metadata["istio"].update({"services": [metadata]})
    return out


def passthrough_cluster(name: str, scope: Scope) -> cl.Cluster:
    """The cluster that sends a call to where it was going."""
    out = cl.Cluster(name=name, type=cl.Cluster.ORIGINAL_DST, lb_policy=cl.Cluster.CLUSTER_PROVIDED)
    out.connect_timeout.CopyFrom(duration(scope.world.mesh.connect_timeout))
    return out


def black_hole_cluster(name: str) -> cl.Cluster:
    """The cluster without endpoints."""
    out = cl.Cluster(name=name, type=cl.Cluster.STATIC)
    out.load_assignment.cluster_name = name
    return out


# --- how endpoints are found -----------------------------------------------------------------


def _discovery(
    out: cl.Cluster,
    service: Service,
    port: ServicePort,
    endpoints: list[Endpoint],
    balancer: LoadBalancer,
    scope: Scope,
) -> bool:
    original = service.resolution is Resolution.NONE or balancer.simple == "PASSTHROUGH"
    if original:
        if scope.dialect is Dialect.GRPC:
            scope.note(f"{service.hostname} is passed through: gRPC's own client cannot")
            return False
        out.type = cl.Cluster.ORIGINAL_DST
        return True
    if service.resolution is Resolution.ALIAS:  # of a name outside the registry
        endpoints = [Endpoint(service.external_name, port.number)]
    elif service.resolution not in _DNS:
        out.type = cl.Cluster.EDS
        out.eds_cluster_config.eds_config.CopyFrom(ads())
        out.eds_cluster_config.service_name = out.name
        return True
    return _dns(out, service, endpoints, scope)


def _dns(out: cl.Cluster, service: Service, endpoints: list[Endpoint], scope: Scope) -> bool:
    logical = service.resolution is Resolution.DNS_ROUND_ROBIN
    if scope.dialect is Dialect.GRPC:
        if len(endpoints) != 1:
            scope.note(f"{service.hostname}: gRPC's own client resolves one DNS name per cluster")
            return False
        logical = True
    out.type = cl.Cluster.LOGICAL_DNS if logical else cl.Cluster.STRICT_DNS
    if logical and len(endpoints) > 1:
        endpoints = endpoints[:1]
        scope.note(f"{service.hostname}: DNS_ROUND_ROBIN takes the first endpoint only")
    out.dns_refresh_rate.CopyFrom(duration(scope.world.mesh.dns_refresh_rate))
    out.respect_dns_ttl = True
    out.load_assignment.CopyFrom(assignment(out.name, endpoints, scope))
    return True


# --- balancing -------------------------------------------------------------------------------


def _balance(out: cl.Cluster, balancer: LoadBalancer, scope: Scope) -> None:
    if out.type == cl.Cluster.ORIGINAL_DST:
        out.lb_policy = cl.Cluster.CLUSTER_PROVIDED
        return
    if balancer.consistent_hash is not None:
        _hash(out, balancer, scope)
        return
    simple = balancer.simple or "UNSPECIFIED"
    out.lb_policy = _SIMPLE.get(simple, cl.Cluster.LEAST_REQUEST)
    if scope.dialect is Dialect.GRPC:
        if out.lb_policy != cl.Cluster.ROUND_ROBIN and simple in _SIMPLE:
            scope.note(f"{simple} is not known to gRPC's own client: ROUND_ROBIN instead")
        out.lb_policy = cl.Cluster.ROUND_ROBIN
    _warmup(out, balancer, scope)


def _hash(out: cl.Cluster, balancer: LoadBalancer, scope: Scope) -> None:
    asked = balancer.consistent_hash
    assert asked is not None
    if asked.maglev is not None:
        if scope.dialect is not Dialect.GRPC:
            out.lb_policy = cl.Cluster.MAGLEV
            if asked.maglev.table_size:
                out.maglev_lb_config.table_size.value = asked.maglev.table_size
            return
        scope.note("MAGLEV is not known to gRPC's own client: RING_HASH instead")
    out.lb_policy = cl.Cluster.RING_HASH
    size = asked.ring_hash.minimum_ring_size if asked.ring_hash else asked.minimum_ring_size
    out.ring_hash_lb_config.minimum_ring_size.value = size or _MIN_RING_SIZE


def _warmup(out: cl.Cluster, balancer: LoadBalancer, scope: Scope) -> None:
    """Slow start of new endpoints (D11)."""
    warmup = balancer.warmup
    window = warmup.duration if warmup else balancer.warmup_duration_secs
    if not window:
        return
    if scope.dialect is Dialect.GRPC:
        scope.note("warmup is not known to gRPC's own client: left out")
        return
    if out.lb_policy == cl.Cluster.LEAST_REQUEST:
        slow = out.least_request_lb_config.slow_start_config
    elif out.lb_policy == cl.Cluster.ROUND_ROBIN:
        slow = out.round_robin_lb_config.slow_start_config
    else:
        return
    slow.slow_start_window.CopyFrom(duration(window))
    slow.min_weight_percent.value = 10
    if warmup and warmup.minimum_percent is not None:
        slow.min_weight_percent.value = warmup.minimum_percent
    if warmup and warmup.aggression is not None:
        slow.aggression.default_value = warmup.aggression
        slow.aggression.runtime_key = ""


# --- limits ----------------------------------------------------------------------------------


def _pool(out: cl.Cluster, pool: ConnectionPool, port: ServicePort, scope: Scope) -> None:
    """Connection pool and circuit breakers; 0 means the default, which is no limit (D12)."""
    tcp, http = pool.tcp or TcpSettings(), pool.http or HttpSettings()
    timeout = tcp.connect_timeout or scope.world.mesh.connect_timeout
    out.connect_timeout.CopyFrom(duration(timeout))
    limits = out.circuit_breakers.thresholds.add()
    limits.max_requests.value = http.http2_max_requests or _UNLIMITED
    if scope.dialect is Dialect.GRPC:
        if tcp.max_connections or http.http1_max_pending_requests:
            scope.note("of connectionPool gRPC's own client knows http2MaxRequests only")
        return
    limits.max_connections.value = tcp.max_connections or _UNLIMITED
    limits.max_pending_requests.value = http.http1_max_pending_requests or _UNLIMITED
    limits.max_retries.value = http.max_retries or _UNLIMITED
    limits.track_remaining = True
    _keepalive(out, tcp)
    _http_options(out, http, port)


def _keepalive(out: cl.Cluster, tcp: TcpSettings) -> None:
    if tcp.tcp_keepalive is None:
        return
    keepalive = out.upstream_connection_options.tcp_keepalive
    if tcp.tcp_keepalive.probes:
        keepalive.keepalive_probes.value = tcp.tcp_keepalive.probes
    if tcp.tcp_keepalive.time:
        keepalive.keepalive_time.value = int(tcp.tcp_keepalive.time)
    if tcp.tcp_keepalive.interval:
        keepalive.keepalive_interval.value = int(tcp.tcp_keepalive.interval)


def _http_options(out: cl.Cluster, http: HttpSettings, port: ServicePort) -> None:
    """How HTTP is spoken to the cluster (D13, S2)."""
    options = hpo.HttpProtocolOptions()
    if http.idle_timeout:
        options.common_http_protocol_options.idle_timeout.CopyFrom(duration(http.idle_timeout))
    if http.max_requests_per_connection:
        limit = options.common_http_protocol_options.max_requests_per_connection
        limit.value = http.max_requests_per_connection
    sniffed = port.protocol.value == "UnsupportedProtocol"
    upgraded = http.h2_upgrade_policy == "UPGRADE"
    if http.use_client_protocol or (sniffed and not upgraded):
        options.use_downstream_protocol_config.http_protocol_options.SetInParent()
        options.use_downstream_protocol_config.http2_protocol_options.SetInParent()
    elif port.protocol.is_http2 or upgraded:
        explicit = options.explicit_http_config.http2_protocol_options
        explicit.SetInParent()
        if http.max_concurrent_streams:
            explicit.max_concurrent_streams.value = http.max_concurrent_streams
    elif port.protocol.is_http:
        options.explicit_http_config.http_protocol_options.SetInParent()
    else:
        return
    out.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(pack(options))


def _outlier(out: cl.Cluster, asked: OutlierDetection, scope: Scope) -> None:
    """Ejection of failing endpoints (D15, D16, D18)."""
    if scope.dialect is Dialect.GRPC:
        # An empty message there means success-rate ejection, which Istio never does.
        scope.note("outlierDetection by consecutive errors is not known to gRPC's own client")
        return
    rule = out.outlier_detection
    rule.SetInParent()
    rule.enforcing_success_rate.value = 0
    if asked.consecutive_5xx_errors is not None:
        rule.consecutive_5xx.value = asked.consecutive_5xx_errors
        rule.enforcing_consecutive_5xx.value = 100 if asked.consecutive_5xx_errors > 0 else 0
    if asked.consecutive_gateway_errors is not None:
        errors = asked.consecutive_gateway_errors
        rule.consecutive_gateway_failure.value = errors
        rule.enforcing_consecutive_gateway_failure.value = 100 if errors > 0 else 0
    if asked.interval:
        rule.interval.CopyFrom(duration(asked.interval))
    if asked.base_ejection_time:
        rule.base_ejection_time.CopyFrom(duration(asked.base_ejection_time))
    if asked.max_ejection_percent:
        rule.max_ejection_percent.value = asked.max_ejection_percent
    if asked.split_external_local_origin_errors:
        rule.split_external_local_origin_errors = True
        if asked.consecutive_local_origin_failures:
            failures = asked.consecutive_local_origin_failures
            rule.consecutive_local_origin_failure.value = failures
            rule.enforcing_consecutive_local_origin_failure.value = 100
            rule.enforcing_local_origin_success_rate.value = 0
    out.common_lb_config.healthy_panic_threshold.value = asked.min_health_percent


def _unserved(policy: TrafficPolicy, name: ClusterName, scope: Scope) -> None:
    if policy.tls is not None and policy.tls.mode not in ("DISABLE", "ISTIO_MUTUAL"):
        scope.note(f"{name}: tls mode {policy.tls.mode} is accepted and not applied yet")
    if policy.tunnel is not None or policy.proxy_protocol is not None:
        scope.note(f"{name}: tunnel and proxyProtocol are accepted and not applied yet")
