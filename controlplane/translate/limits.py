"""What bounds calls to a cluster: connection pool, protocol, ejection (D12 to D18, D23).

Source: Istio networking/core/cluster_traffic_policy.go.
"""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2 as cl
from envoy.config.common.matcher.v3 import matcher_pb2
from envoy.config.route.v3 import route_components_pb2 as rc
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2 as hpo
from envoy.type.matcher.v3 import string_pb2

from controlplane.model.policy import (
    ConnectionPool,
    HttpSettings,
    OutlierDetection,
    TcpKeepalive,
    TcpSettings,
    TrafficPolicy,
)
from controlplane.translate.node import Dialect
from controlplane.translate.scope import Scope
from controlplane.translate.tls import asks_for_own_sni, trusts_anybody
from controlplane.translate.wire import duration, pack
from controlplane.world import ServicePort

_UNLIMITED = 2**32 - 1
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_BUDGET_PERCENT = 20.0
_BUDGET_CONCURRENCY = 3


def limit(out: cl.Cluster, policy: TrafficPolicy, port: ServicePort, scope: Scope) -> None:
    """Writes connection pool, circuit breakers, protocol options and ejection into a cluster."""
    pool = policy.connection_pool or ConnectionPool()
    tcp, http = pool.tcp or TcpSettings(), pool.http or HttpSettings()
    out.connect_timeout.CopyFrom(duration(tcp.connect_timeout or scope.world.mesh.connect_timeout))
    _breakers(out, tcp, http, policy, scope)
    if policy.outlier_detection is not None:
        _outlier(out, policy.outlier_detection, scope)
    if scope.dialect is Dialect.GRPC:
        return
    for asked in (scope.world.mesh.tcp_keepalive, tcp.tcp_keepalive):
        if asked is not None:
            _keepalive(out, asked)
    _http_options(out, tcp, http, policy, port, scope)


def _breakers(
    out: cl.Cluster, tcp: TcpSettings, http: HttpSettings, policy: TrafficPolicy, scope: Scope
) -> None:
    """0 in a number means the default, which is no limit (D12)."""
    limits = out.circuit_breakers.thresholds.add()
    limits.max_requests.value = http.http2_max_requests or _UNLIMITED
    if scope.dialect is Dialect.GRPC:
        if policy.retry_budget is not None:
            scope.note("retryBudget is not known to gRPC's own client: left out")
        if tcp.max_connections or http.http1_max_pending_requests:
            scope.note("of connectionPool gRPC's own client knows http2MaxRequests only")
        return
    limits.max_connections.value = tcp.max_connections or _UNLIMITED
    limits.max_pending_requests.value = http.http1_max_pending_requests or _UNLIMITED
    limits.track_remaining = True
    budget = policy.retry_budget
    if budget is None:
        limits.max_retries.value = http.max_retries or _UNLIMITED
        return
    percent = _BUDGET_PERCENT if budget.percent is None else budget.percent
    limits.retry_budget.budget_percent.value = percent
    limits.retry_budget.min_retry_concurrency.value = (
        budget.min_retry_concurrency or _BUDGET_CONCURRENCY
    )
    if budget.budget_interval:
        scope.note("retryBudget.budgetInterval is accepted and not applied")


def _keepalive(out: cl.Cluster, asked: TcpKeepalive) -> None:
    keepalive = out.upstream_connection_options.tcp_keepalive
    keepalive.SetInParent()
    if asked.probes:
        keepalive.keepalive_probes.value = asked.probes
    if asked.time:
        keepalive.keepalive_time.value = int(asked.time)
    if asked.interval:
        keepalive.keepalive_interval.value = int(asked.interval)


# --- protocol --------------------------------------------------------------------------------


def _http_options(
    out: cl.Cluster,
    tcp: TcpSettings,
    http: HttpSettings,
    policy: TrafficPolicy,
    port: ServicePort,
    scope: Scope,
) -> None:
    options = hpo.HttpProtocolOptions()
    _common(options, tcp, http)
    if out.HasField("cluster_type"):  # any host: Envoy wants each checked by its own name
        options.upstream_http_protocol_options.auto_sni = True
        options.upstream_http_protocol_options.auto_san_validation = not trusts_anybody(policy.tls)
    elif policy.tls is not None and asks_for_own_sni(policy.tls):
        options.upstream_http_protocol_options.auto_sni = True
        options.upstream_http_protocol_options.auto_san_validation = (
            not policy.tls.subject_alt_names and not trusts_anybody(policy.tls)
        )
    codes = policy.outlier_detection and policy.outlier_detection.outlier_detection_http_error_codes
    if codes:
        options.outlier_detection.error_matcher.CopyFrom(_error_codes(codes))
    said = bool(options.ListFields())
    _protocol(options, http, port, scope)
    if options.WhichOneof("upstream_protocol_options") is None:
        if not said:
            return
        options.explicit_http_config.http_protocol_options.SetInParent()  # one has to be chosen
    out.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(pack(options))


def _common(options: hpo.HttpProtocolOptions, tcp: TcpSettings, http: HttpSettings) -> None:
    common = options.common_http_protocol_options
    idle = http.idle_timeout if http.idle_timeout is not None else tcp.idle_timeout
    if idle is not None:
        common.idle_timeout.CopyFrom(duration(idle))
    if http.max_requests_per_connection:
        common.max_requests_per_connection.value = http.max_requests_per_connection
    if tcp.max_connection_duration:
        common.max_connection_duration.CopyFrom(duration(tcp.max_connection_duration))


def _protocol(
    options: hpo.HttpProtocolOptions, http: HttpSettings, port: ServicePort, scope: Scope
) -> None:
    """How HTTP is spoken to the cluster (D13, S2)."""
    sniffed = port.protocol.value == "UnsupportedProtocol"
    upgraded = http.h2_upgrade_policy == "UPGRADE" or (
        http.h2_upgrade_policy == "DEFAULT"
        and scope.world.mesh.h2_upgrade
        and port.protocol.is_http
    )
    if http.use_client_protocol or (sniffed and not upgraded):
        options.use_downstream_protocol_config.http_protocol_options.SetInParent()
        second = options.use_downstream_protocol_config.http2_protocol_options
    elif port.protocol.is_http2 or upgraded:
        second = options.explicit_http_config.http2_protocol_options
        if http.max_concurrent_streams:
            second.max_concurrent_streams.value = http.max_concurrent_streams
    elif port.protocol.is_http:
        options.explicit_http_config.http_protocol_options.SetInParent()
        return
    else:
        return
    second.SetInParent()
    if (alive := http.http2_keep_alive) is not None:
        if alive.interval:
            second.connection_keepalive.interval.CopyFrom(duration(alive.interval))
        if alive.timeout:
            second.connection_keepalive.timeout.CopyFrom(duration(alive.timeout))


# --- ejection --------------------------------------------------------------------------------


def _outlier(out: cl.Cluster, asked: OutlierDetection, scope: Scope) -> None:
    """Ejection of failing endpoints (D15, D16, D18)."""
    if scope.dialect is Dialect.GRPC:
        # An empty message there means success-rate ejection, which Istio never does.
        scope.note("outlierDetection by consecutive errors is not known to gRPC's own client")
        return
    out.outlier_detection.CopyFrom(outlier(asked))
    out.common_lb_config.healthy_panic_threshold.value = asked.min_health_percent


def outlier(asked: OutlierDetection) -> cl.outlier__detection__pb2.OutlierDetection:
    """The ejection rule of a cluster; what is left out is Envoy's default."""
    rule = cl.Cluster().outlier_detection
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
    return rule


def _error_codes(codes: tuple[int, ...]) -> matcher_pb2.MatchPredicate:
    """Which answers count as errors instead of 5xx (D17)."""
    found = []
    for code in codes:
        one = matcher_pb2.MatchPredicate()
        status = rc.HeaderMatcher(
            name=":status", string_match=string_pb2.StringMatcher(exact=str(code))
        )
        one.http_response_headers_match.headers.append(status)
        found.append(one)
    if len(found) == 1:
        return found[0]
    out = matcher_pb2.MatchPredicate()
    out.or_match.rules.extend(found)
    return out
