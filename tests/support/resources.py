"""Short builders for the xDS messages that the tests serve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import address_pb2, base_pb2, config_source_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import api_listener_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message

PREFIX = "type.googleapis.com/"
LDS = PREFIX + "envoy.config.listener.v3.Listener"
RDS = PREFIX + "envoy.config.route.v3.RouteConfiguration"
CDS = PREFIX + "envoy.config.cluster.v3.Cluster"
EDS = PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"


def pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message, deterministic=True)
    return packed


def seconds(value: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(round(value * 1e9))
    return duration


def ads_source() -> config_source_pb2.ConfigSource:
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(),
        resource_api_version=config_source_pb2.V3,
    )


# --- routes ----------------------------------------------------------------------------------


def route(
    cluster: str = "",
    *,
    prefix: str = "/",
    path: str | None = None,
    name: str = "",
    weights: Mapping[str, int] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float | None = None,
    status: int | None = None,
    body: str = "",
    **action: Any,
) -> route_components_pb2.Route:
    """One route: to `cluster`, to `weights`, or a direct response of `status`.

    `action` is passed to RouteAction (`prefix_rewrite="/v2/"`, `host_rewrite_literal=...`).
    """
    match = route_components_pb2.RouteMatch()
    if path is not None:
        match.path = path
    else:
        match.prefix = prefix
    for header, value in (headers or {}).items():
        match.headers.add(name=header).string_match.exact = value
    if status is not None:
        direct = route_components_pb2.DirectResponseAction(status=status)
        if body:
            direct.body.inline_string = body
        return route_components_pb2.Route(name=name, match=match, direct_response=direct)
    forward = route_components_pb2.RouteAction(**action)
    if weights:
        for target, weight in weights.items():
            forward.weighted_clusters.clusters.add(name=target).weight.value = weight
    else:
        forward.cluster = cluster
    if timeout is not None:
        forward.timeout.CopyFrom(seconds(timeout))
    return route_components_pb2.Route(name=name, match=match, route=forward)


def redirect(*, prefix: str = "/", **fields: Any) -> route_components_pb2.Route:
    return route_components_pb2.Route(
        match=route_components_pb2.RouteMatch(prefix=prefix),
        redirect=route_components_pb2.RedirectAction(**fields),
    )


def virtual_host(
    name: str, domains: Sequence[str], routes: Iterable[route_components_pb2.Route]
) -> route_components_pb2.VirtualHost:
    return route_components_pb2.VirtualHost(name=name, domains=domains, routes=routes)


def route_configuration(
    name: str,
    routes: Iterable[route_components_pb2.Route] = (),
    *,
    virtual_hosts: Iterable[route_components_pb2.VirtualHost] = (),
) -> route_pb2.RouteConfiguration:
    hosts = list(virtual_hosts) or [virtual_host(name, ["*"], routes)]
    return route_pb2.RouteConfiguration(name=name, virtual_hosts=hosts)


# --- listener, cluster, endpoints ------------------------------------------------------------


def listener(
    name: str,
    routes: Iterable[route_components_pb2.Route] = (),
    *,
    rds: str = "",
    virtual_hosts: Iterable[route_components_pb2.VirtualHost] = (),
    filters: Iterable[Message] = (),
) -> listener_pb2.Listener:
    """A client listener: with `routes` (or `virtual_hosts`) inline, or by the RDS name `rds`.

    `filters` are filter configurations put in front of the router, for example an `HTTPFault`.
    """
    manager = hcm_pb2.HttpConnectionManager(stat_prefix=name)
    if rds:
        manager.rds.route_config_name = rds
        manager.rds.config_source.CopyFrom(ads_source())
    else:
        manager.route_config.CopyFrom(
            route_configuration(name, routes, virtual_hosts=virtual_hosts)
        )
    for configuration in filters:
        manager.http_filters.add(
            name=configuration.DESCRIPTOR.full_name, typed_config=pack(configuration)
        )
    manager.http_filters.add(
        name="envoy.filters.http.router", typed_config=pack(router_pb2.Router())
    )
    return listener_pb2.Listener(
        name=name, api_listener=api_listener_pb2.ApiListener(api_listener=pack(manager))
    )


def cluster(
    name: str, *, eds_name: str = "", lb: str = "ROUND_ROBIN", connect_timeout: float = 1.0
) -> cluster_pb2.Cluster:
    """An EDS cluster over ADS."""
    message = cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.EDS,
        lb_policy=cluster_pb2.Cluster.LbPolicy.Value(lb),
        connect_timeout=seconds(connect_timeout),
    )
    message.eds_cluster_config.eds_config.CopyFrom(ads_source())
    message.eds_cluster_config.service_name = eds_name
    return message


def passthrough_cluster(name: str = "PassthroughCluster") -> cluster_pb2.Cluster:
    """Istio's cluster for hosts that are not in the registry."""
    return cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.ORIGINAL_DST,
        lb_policy=cluster_pb2.Cluster.CLUSTER_PROVIDED,
        connect_timeout=seconds(10),
    )


def endpoints(
    name: str,
    addresses: Iterable[tuple[str, int]],
    *,
    health: str = "UNKNOWN",
    region: str = "",
    zone: str = "",
) -> endpoint_pb2.ClusterLoadAssignment:
    """One locality with `addresses`, all of the same health; no address: an empty assignment."""
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    hosts = [
        endpoint_components_pb2.LbEndpoint(
            endpoint=endpoint_components_pb2.Endpoint(
                address=address_pb2.Address(
                    socket_address=address_pb2.SocketAddress(address=host, port_value=port)
                )
            ),
            health_status=health_check_pb2.HealthStatus.Value(health),
        )
        for host, port in addresses
    ]
    if hosts:
        locality = message.endpoints.add(lb_endpoints=hosts)
        locality.locality.CopyFrom(base_pb2.Locality(region=region, zone=zone))
        locality.load_balancing_weight.value = 1
    return message


def service(
    name: str,
    addresses: Iterable[tuple[str, int]],
    *,
    routes: Iterable[route_components_pb2.Route] | None = None,
    cluster_name: str = "",
    **cluster_options: Any,
) -> list[Message]:
    """Listener `name` (`host:port`), one cluster and its endpoints: what one plain service is."""
    target = cluster_name or default_cluster(name)
    return [
        cluster(target, **cluster_options),
        endpoints(target, addresses),
        listener(name, [route(target)] if routes is None else routes),
    ]


def default_cluster(name: str) -> str:
    """Istio's name of the cluster of listener `host:port`."""
    host, _, port = name.rpartition(":")
    return f"outbound|{port}||{host}"


def unknown_host(name: str, *, allow: bool = True) -> listener_pb2.Listener:
    """The listener that the control plane gives for a host outside the registry."""
    if allow:
        host = virtual_host("allow_any", ["*"], [route("PassthroughCluster", name="allow_any")])
    else:
        host = virtual_host("block_all", ["*"], [route(name="block_all", status=502)])
    return listener(name, virtual_hosts=[host])
