"""Routes of ports whose bytes are passed on unread: `tls` and `tcp` rules (V24, V25).

A client of ours calls by host, so the host stands for the SNI and the addresses of the service for
the destination of the connection. Source: Istio networking/core/tls.go.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from envoy.config.route.v3 import route_components_pb2 as rc

from controlplane.model.hosts import subset_of
from controlplane.model.traffic import (
    MESH_GATEWAY,
    RouteDestination,
    TCPMatch,
    TLSMatch,
    VirtualServiceConfig,
)
from controlplane.translate.scope import Scope
from controlplane.world import Service, ServicePort


def destinations(
    rules: VirtualServiceConfig, service: Service, port: ServicePort, scope: Scope
) -> tuple[RouteDestination, ...]:
    """Where the first rule that holds for this port sends connections; nothing when none does."""

    def holds(match: TLSMatch | TCPMatch) -> bool:
        if isinstance(match, TLSMatch) and not _any_name(match.sni_hosts, service):
            return False
        if match.destination_subnets and not _inside(service, match.destination_subnets):
            return False
        if isinstance(match, TCPMatch) and match.source_subnet:
            return False  # Istio passes over the whole match
        return applies(match, rules.gateways, port.number, scope)

    if port.protocol.is_tls:
        for tls in rules.tls:
            if any(map(holds, tls.match)):
                return tls.route
    for tcp in rules.tcp:
        if not tcp.match or any(map(holds, tcp.match)):
            return tcp.route
    return ()


def applies(match: TLSMatch | TCPMatch, gateways: tuple[str, ...], port: int, scope: Scope) -> bool:
    """Whether connections of these callers fulfil what is known before them.

    Other than for HTTP, gateways of the match do not switch the source off.
    Source: Istio networking/core/tls.go matchTLS, matchTCP.
    """
    return (
        MESH_GATEWAY in (match.gateways or gateways)
        and match.port in (0, port)
        and match.source_namespace in ("", scope.namespace)
        and match.source_labels.items() <= scope.labels.items()
    )


def bytes_route(clusters: list[tuple[str, int]]) -> rc.Route:
    """The one route of a port that is passed on unread.

    Args:
        clusters: names and weights.
    """
    out = rc.Route(name="default", match=rc.RouteMatch(prefix="/"))
    out.route.timeout.SetInParent()
    out.route.max_stream_duration.grpc_timeout_header_max.SetInParent()
    if len(clusters) == 1:
        out.route.cluster = clusters[0][0]
    for name, weight in clusters if len(clusters) > 1 else ():
        entry = out.route.weighted_clusters.clusters.add(name=name)
        entry.weight.value = weight
    return out


def _any_name(hosts: Iterable[str], service: Service) -> bool:
    return any(subset_of(service.hostname, host.lower()) for host in hosts)


def _inside(service: Service, subnets: Iterable[str]) -> bool:
    wanted = [ipaddress.ip_network(subnet, strict=False) for subnet in subnets]
    own = [ipaddress.ip_network(address, strict=False) for address in service.addresses]
    return any(a.version == b.version and a.subnet_of(b) for a in own for b in wanted)  # type: ignore[arg-type]
