"""Clusters from services and DestinationRules; shared by every dialect (D6 to D23, S7, S8)."""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2 as cl
from envoy.config.core.v3 import base_pb2
from envoy.extensions.clusters.dynamic_forward_proxy.v3 import cluster_pb2 as dynamic_pb2
from envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3 import (
    client_side_weighted_round_robin_pb2 as reported_pb2,
)
from envoy.extensions.load_balancing_policies.wrr_locality.v3 import wrr_locality_pb2

from controlplane.model.policy import BackendUtilization, LoadBalancer, TrafficPolicy
from controlplane.translate.endpoints import assignment
from controlplane.translate.limits import limit
from controlplane.translate.localities import Setting, setting_of, spread
from controlplane.translate.node import Dialect
from controlplane.translate.scope import ClusterName, Scope
from controlplane.translate.tls import protect, trusts_anybody
from controlplane.translate.wire import ads, duration, pack
from controlplane.world import Endpoint, Resolution, Service, ServicePort

_MIN_RING_SIZE = 1024
_DYNAMIC = "envoy.clusters.dynamic_forward_proxy"
_DNS = frozenset({Resolution.DNS, Resolution.DNS_ROUND_ROBIN})
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
    setting = setting_of(policy, service, scope)
    out = cl.Cluster(name=str(name))
    if not _discovery(out, service, port, endpoints, policy, setting, scope):
        return None
    balance(out, balancer, scope)
    spread(out, setting, scope)
    limit(out, policy, port, scope)
    protect(out, policy.tls, port, scope)
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
    policy: TrafficPolicy,
    setting: Setting,
    scope: Scope,
) -> bool:
    passed = policy.load_balancer is not None and policy.load_balancer.simple == "PASSTHROUGH"
    if service.resolution is Resolution.NONE or passed:
        if scope.dialect is Dialect.GRPC:
            scope.note(f"{service.hostname} is passed through: gRPC's own client cannot")
            return False
        out.type = cl.Cluster.ORIGINAL_DST
        return True
    if service.resolution is Resolution.DYNAMIC_DNS:
        return _dynamic(out, service, policy, scope)
    if service.resolution is Resolution.ALIAS:  # of a name outside the registry
        endpoints = [Endpoint(service.external_name, port.number)]
    elif service.resolution not in _DNS:
        out.type = cl.Cluster.EDS
        out.eds_cluster_config.eds_config.CopyFrom(ads())
        out.eds_cluster_config.service_name = out.name
        return True
    return _dns(out, service, endpoints, setting, scope)


def _dns(
    out: cl.Cluster, service: Service, endpoints: list[Endpoint], setting: Setting, scope: Scope
) -> bool:
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
    out.dns_lookup_family = cl.Cluster.V4_PREFERRED
    out.load_assignment.CopyFrom(assignment(out.name, endpoints, setting, scope))
    return True


def _dynamic(out: cl.Cluster, service: Service, policy: TrafficPolicy, scope: Scope) -> bool:
    """Each host that a call names is looked up: for hosts below a wildcard."""
    if scope.dialect is Dialect.GRPC:
        scope.note(f"{service.hostname}: gRPC's own client cannot look up the host of a call")
        return False
    config = dynamic_pb2.ClusterConfig()
    cache = config.dns_cache_config
    cache.name = "dynamic-dns"
    cache.dns_lookup_family = cl.Cluster.V4_PREFERRED
    cache.dns_refresh_rate.CopyFrom(duration(scope.world.mesh.dns_refresh_rate))
    config.allow_insecure_cluster_options = trusts_anybody(policy.tls)
    out.cluster_type.name = _DYNAMIC
    out.cluster_type.typed_config.CopyFrom(pack(config))
    return True


# --- balancing -------------------------------------------------------------------------------


def balance(out: cl.Cluster, balancer: LoadBalancer, scope: Scope) -> None:
    """Writes the balancing policy of a cluster whose type is known (D9 to D11)."""
    if out.type == cl.Cluster.ORIGINAL_DST or out.HasField("cluster_type"):
        out.lb_policy = cl.Cluster.CLUSTER_PROVIDED
        return
    if balancer.backend_utilization is not None:
        _reported(out, balancer.backend_utilization)
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
    aggression = 1.0
    if warmup and warmup.minimum_percent is not None:
        slow.min_weight_percent.value = warmup.minimum_percent
    if warmup and warmup.aggression is not None:
        aggression = warmup.aggression
    slow.aggression.CopyFrom(
        base_pb2.RuntimeDouble(default_value=aggression, runtime_key="meshsdk.slow_start")
    )


def _reported(out: cl.Cluster, asked: BackendUtilization) -> None:
    """Weights from what endpoints report of their load (ORCA)."""
    policy = reported_pb2.ClientSideWeightedRoundRobin()
    for name, given in (
        ("blackout_period", asked.weight_stabilization_period),
        ("weight_expiration_period", asked.weight_expiration_period),
        ("weight_update_period", asked.weight_update_period),
    ):
        if given is not None:
            getattr(policy, name).CopyFrom(duration(given))
    if asked.error_utilization_penalty_percent:
        policy.error_utilization_penalty.value = asked.error_utilization_penalty_percent / 100
    policy.metric_names_for_computing_utilization.extend(
        asked.metric_names_for_computing_utilization
    )
    outer = wrr_locality_pb2.WrrLocality()
    inner = outer.endpoint_picking_policy.policies.add().typed_extension_config
    inner.name = "envoy.load_balancing_policies.client_side_weighted_round_robin"
    inner.typed_config.CopyFrom(pack(policy))
    named = out.load_balancing_policy.policies.add().typed_extension_config
    named.name = "envoy.load_balancing_policies.wrr_locality"
    named.typed_config.CopyFrom(pack(outer))


def _unserved(policy: TrafficPolicy, name: ClusterName, scope: Scope) -> None:
    if policy.tls is not None and policy.tls.mode == "ISTIO_MUTUAL":
        scope.note("tls mode ISTIO_MUTUAL is not applied yet: calls go out in PLAIN TEXT")
    if policy.tunnel is not None or policy.proxy_protocol is not None:
        scope.note(f"{name}: tunnel and proxyProtocol are accepted and not applied")
