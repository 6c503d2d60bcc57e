"""The dialect of proxyless nodes: every resource by name, on demand (X8).

`host:port` names a client listener, `outbound|port|subset|host` a route configuration, a cluster
and its endpoints, `xds.istio.io/grpc/lds/inbound/ip:port` a server listener.
"""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)

from controlplane.model.hosts import is_wildcard, specificity, subset_of
from controlplane.model.traffic import VirtualServiceConfig
from controlplane.translate import clusters as cl
from controlplane.translate import routes as rt
from controlplane.translate.endpoints import assignment
from controlplane.translate.filters import client_filters, router_filter
from controlplane.translate.localities import setting_of
from controlplane.translate.node import Dialect
from controlplane.translate.patches import Patches
from controlplane.translate.scope import (
    BLACK_HOLE,
    PASSTHROUGH,
    ClusterName,
    Scope,
    port_of,
    split_authority,
)
from controlplane.translate.wire import ads, pack
from controlplane.world import Resolution

INBOUND_PREFIX = "xds.istio.io/grpc/lds/inbound/"
_HCM = "envoy.filters.network.http_connection_manager"
_HTTP_PORT = 80


def listener(scope: Scope, name: str) -> listener_pb2.Listener | None:
    """The listener of that name; None when there is nothing to say to this node."""
    if name.startswith(INBOUND_PREFIX):
        return _inbound(scope, name)
    called = split_authority(name)
    if called is None:
        return None
    host, port = called
    service = scope.find(host, port)
    if service is not None and port_of(scope.concrete(service), port) is not None:
        return _client(scope, name, rds=str(ClusterName(port, "", service.hostname)))
    if _rules_alone(scope, name) is not None:
        return _client(scope, name, rds=name)
    return _unknown(scope, name)


def route(scope: Scope, name: str) -> route_pb2.RouteConfiguration | None:
    """The route configuration of that name."""
    asked = ClusterName.parse(name)
    found = _rules_alone(scope, name) if asked is None else _service_route(scope, name, asked)
    called = split_authority(name)
    if found is not None:
        port = asked.port if asked else called[1] if called else 0
        Patches.of(scope).routes(found, port)
    return found


def _service_route(
    scope: Scope, name: str, asked: ClusterName
) -> route_pb2.RouteConfiguration | None:
    service = scope.called(asked.host, asked.port)
    if service is None or asked.subset:
        return None
    target = scope.concrete(service)
    port = port_of(target, asked.port)
    return rt.service_route(name, service, target, port, scope) if port else None


def cluster(scope: Scope, name: str) -> cluster_pb2.Cluster | None:
    """The cluster of that name."""
    patches = Patches.of(scope)
    found = _cluster(scope, name)
    if found is not None:
        return patches.cluster(found)
    return next((added for added in patches.added_clusters() if added.name == name), None)


def _cluster(scope: Scope, name: str) -> cluster_pb2.Cluster | None:
    if scope.dialect is not Dialect.GRPC:
        if name == PASSTHROUGH:
            return cl.passthrough_cluster(name, scope)
        if name == BLACK_HOLE:
            return cl.black_hole_cluster(name)
    asked = ClusterName.parse(name)
    service = scope.service(asked.host) if asked else None
    if asked is None or service is None:
        return None
    port = port_of(service, asked.port)
    return cl.service_cluster(asked, service, port, scope) if port else None


def endpoints(scope: Scope, name: str) -> endpoint_pb2.ClusterLoadAssignment | None:
    """The endpoints of the cluster of that name."""
    asked = ClusterName.parse(name)
    service = scope.service(asked.host) if asked else None
    if asked is None or service is None or service.resolution is not Resolution.CLIENT_SIDE:
        return None
    port = port_of(service, asked.port)
    found = scope.endpoints(service, port, asked.subset) if port else None
    if found is None:
        return None
    setting = setting_of(scope.policy(service, asked.port, asked.subset), service, scope)
    return assignment(name, found, setting, scope)


def listener_names(scope: Scope) -> list[str]:
    """Every client listener that these callers may ask for, under its qualified name."""
    return [f"{service.hostname}:{port}" for service, port in scope.places()]


def route_names(scope: Scope) -> list[str]:
    """Every route configuration of a service that these callers may ask for."""
    return [str(ClusterName(port, "", service.hostname)) for service, port in scope.places()]


def cluster_names(scope: Scope) -> list[str]:
    """Every cluster that these callers may be sent to."""
    names = []
    for service in scope.reachable():
        if service.resolution is Resolution.ALIAS and scope.concrete(service) is not service:
            continue
        rule = scope.destination_rule(service)
        subsets = ["", *(subset.name for subset in rule.subsets)] if rule else [""]
        names += [
            str(ClusterName(port.number, subset, service.hostname))
            for port in service.ports
            for subset in subsets
        ]
    names += [added.name for added in Patches.of(scope).added_clusters()]
    return names if scope.dialect is Dialect.GRPC else [*names, PASSTHROUGH, BLACK_HOLE]


# --- listeners -------------------------------------------------------------------------------


def _client(scope: Scope, name: str, *, rds: str) -> listener_pb2.Listener:
    manager = hcm_pb2.HttpConnectionManager(stat_prefix=rds)
    manager.rds.config_source.CopyFrom(ads())
    manager.rds.route_config_name = rds
    return _api_listener(scope, name, manager)


def _unknown(scope: Scope, name: str) -> listener_pb2.Listener | None:
    """A host outside the registry: answered at once, so that nobody waits for it (C9)."""
    called = split_authority(name)
    hosts = rt.others(scope, known=called is not None and _is_member(scope, *called))
    if not hosts:
        return None
    manager = hcm_pb2.HttpConnectionManager(stat_prefix=hosts[0].name)
    manager.route_config.CopyFrom(
        route_pb2.RouteConfiguration(name=hosts[0].name, virtual_hosts=hosts)
    )
    return _api_listener(scope, name, manager)


def _api_listener(
    scope: Scope, name: str, manager: hcm_pb2.HttpConnectionManager
) -> listener_pb2.Listener:
    manager.http_filters.extend(client_filters(scope.dialect))
    patches, called = Patches.of(scope), split_authority(name)
    if patches and called is not None:
        patches.manager(manager, called[1])
        if manager.HasField("route_config"):
            patches.routes(manager.route_config, called[1])
    out = listener_pb2.Listener(name=name)
    out.api_listener.api_listener.CopyFrom(pack(manager))
    return out


def _rules_alone(scope: Scope, name: str) -> route_pb2.RouteConfiguration | None:
    """Routes of a host that a VirtualService names and no registry knows (H15)."""
    called = split_authority(name)
    if called is None:
        return None
    host, port = called
    if scope.find(host, port) is not None:
        return None
    for rules in scope.rules(host, port):
        if port in _ports_alone(rules, host, scope, port):
            found = rt.rule_route(name, host, port, rules, scope)
            if found is not None:
                return found
    return None


def _ports_alone(rules: VirtualServiceConfig, host: str, scope: Scope, port: int) -> set[int]:
    """The ports on which a rule speaks for a host that is no service.

    Those of the services that it rules besides; port 80 where there are none. A wildcard that
    stands for services speaks for them alone.
    """
    ports: set[int] = set()
    wildcard = min((own for own in rules.hosts if subset_of(host, own)), key=specificity)
    for service in scope.services_called(port):
        if not any(subset_of(service.hostname, own) for own in rules.hosts):
            continue
        if is_wildcard(wildcard) and subset_of(service.hostname, wildcard):
            return set()
        ports.update(one.number for one in service.ports if not one.protocol.is_opaque)
    return ports or {_HTTP_PORT}


def _is_member(scope: Scope, host: str, port: int) -> bool:
    """Whether it is the name of one pod of a headless service: the registry holds its service."""
    service = scope.find(host.partition(".")[2], port)
    return service is not None and service.headless and service.port(port) is not None


def _inbound(scope: Scope, name: str) -> listener_pb2.Listener | None:
    """A server listener: plain text, every call goes to the application."""
    called = split_authority(name.removeprefix(INBOUND_PREFIX))
    if called is None:
        return None
    host, port = called
    everything = route_components_pb2.VirtualHost(name=f"inbound|http|{port}", domains=["*"])
    match = everything.routes.add(name="default").match
    match.prefix = "/"
    everything.routes[0].non_forwarding_action.SetInParent()
    manager = hcm_pb2.HttpConnectionManager(
        stat_prefix=f"inbound|{port}", http_filters=[router_filter()]
    )
    manager.route_config.name = f"inbound|{port}||"
    manager.route_config.virtual_hosts.append(everything)
    chain = listener_components_pb2.FilterChain(name="inbound")
    chain.filters.add(name=_HCM, typed_config=pack(manager))
    out = listener_pb2.Listener(name=name, filter_chains=[chain])
    out.address.socket_address.address = host
    out.address.socket_address.port_value = port
    return out
