"""Virtual hosts and routes from VirtualServices; shared by every dialect.

Source: Istio networking/core/route; the letters and numbers are those of the semantics list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from envoy.config.route.v3 import route_components_pb2 as rc
from envoy.config.route.v3 import route_pb2

from controlplane.model.hosts import bracketed, is_wildcard, single_address
from controlplane.model.traffic import HTTPMatch, HTTPRoute, VirtualServiceConfig
from controlplane.translate import actions, layer4
from controlplane.translate.filters import add_route_filters
from controlplane.translate.matches import is_catch_all, misses, route_matches
from controlplane.translate.node import Dialect
from controlplane.translate.retries import retry_policy
from controlplane.translate.scope import PASSTHROUGH, ClusterName, Scope
from controlplane.translate.wire import duration
from controlplane.world import Service, ServicePort

_NEVER = "it asks for what is known at gateways only, or what gRPC cannot say"

# --- virtual hosts ---------------------------------------------------------------------------


def service_route(
    name: str, service: Service, target: Service, port: ServicePort, scope: Scope
) -> route_pb2.RouteConfiguration:
    """The route configuration of one port of a service.

    Args:
        name: its resource name.
        service: the service as it is called.
        target: what it stands for: the same, or what an alias points to.
        port: the port that is called.
        scope: who calls.
    """
    domains = [*service_domains(service, port.number, scope)]
    if target is not service:
        domains += service_domains(target, port.number, scope)
    routes: list[rc.Route] = []
    first = ""
    for rules in scope.rules(target.hostname, port.number):
        if routes:  # rules are not merged
            scope.left_out.append(f"{rules}: no, {first} comes before it for {target.hostname}")
        elif _passes_bytes(port):
            first, routes = str(rules), _bytes_routes(rules, target, port, scope)
        else:
            first, routes = str(rules), service_routes(rules, target, port.number, scope)
    if not routes:
        routes = [default_route(target, port.number, scope)]
    host = rc.VirtualHost(
        name=f"{service.hostname}:{port.number}",
        domains=list(dict.fromkeys(domains)),
        routes=routes,
    )
    if _passes_bytes(port):
        del host.domains[:]
        host.domains.append("*")
        return route_pb2.RouteConfiguration(name=name, virtual_hosts=[host])
    hosts = [host, *others(scope)]
    return route_pb2.RouteConfiguration(name=name, virtual_hosts=hosts)


def rule_route(
    name: str, host: str, port: int, rules: VirtualServiceConfig, scope: Scope
) -> route_pb2.RouteConfiguration | None:
    """The route configuration of a host that only a VirtualService knows (H15)."""
    routes = service_routes(rules, None, port, scope)
    if not routes:
        return None
    names = [*_with_port(host, port)]
    virtual = rc.VirtualHost(name=f"{host}:{port}", domains=names, routes=routes)
    return route_pb2.RouteConfiguration(name=name, virtual_hosts=[virtual, *others(scope)])


def others(scope: Scope, *, known: bool = False) -> list[rc.VirtualHost]:
    """What happens to hosts outside the registry (C9); gRPC's own client must not learn of it.

    Args:
        known: the host belongs to a service all the same and is never refused.
    """
    if scope.dialect is Dialect.GRPC:
        return []
    match = rc.RouteMatch(prefix="/")
    if known or scope.allow_any:
        action = rc.RouteAction(cluster=PASSTHROUGH, timeout=duration(0))
        if scope.egress_proxy is not None:
            action.cluster = str(actions.cluster_of(scope.egress_proxy, 0, scope))
        route = rc.Route(name="allow_any", match=match, route=action)
        return [rc.VirtualHost(name="allow_any", domains=["*"], routes=[route])]
    block = rc.DirectResponseAction(status=502)
    route = rc.Route(name="block_all", match=match, direct_response=block)
    return [rc.VirtualHost(name="block_all", domains=["*"], routes=[route])]


def _passes_bytes(port: ServicePort) -> bool:
    """No L7 rule applies: the protocol is declared and is not HTTP in the clear."""
    return port.protocol.is_opaque


def _bytes_routes(
    rules: VirtualServiceConfig, service: Service, port: ServicePort, scope: Scope
) -> list[rc.Route]:
    targets = actions.weighing(layer4.destinations(rules, service, port, scope))
    clusters = [
        (str(actions.cluster_of(target.destination, port.number, scope)), target.weight)
        for target in targets
    ]
    return [layer4.bytes_route(clusters)] if clusters else []


def service_domains(service: Service, port: int, scope: Scope) -> Iterator[str]:
    """Every authority under which a service answers to these callers (H13)."""
    yield from _with_port(service.hostname, port)
    if not is_wildcard(service.hostname):
        yield from _with_port(f"{service.hostname}.", port)
    suffix = f".svc.{scope.world.mesh.domain}"
    if service.hostname == f"{service.name}.{service.namespace}{suffix}":
        if service.namespace == scope.namespace:
            yield from _with_port(service.name, port)
        yield from _with_port(f"{service.name}.{service.namespace}", port)
        yield from _with_port(f"{service.name}.{service.namespace}.svc", port)
    for address in service.addresses:
        ip = single_address(address)
        if ip is None:
            continue  # a CIDR is no authority
        yield from _with_port(bracketed(str(ip)), port)


def _with_port(host: str, port: int) -> tuple[str, ...]:
    # `*:80` would be a second catch-all to some and a literal to others.
    return (host,) if host == "*" else (host, f"{host}:{port}")


# --- routes ----------------------------------------------------------------------------------


def service_routes(
    rules: VirtualServiceConfig, service: Service | None, port: int, scope: Scope
) -> list[rc.Route]:
    """The routes of a VirtualService for one listener port, first match wins (V2)."""
    routes: list[rc.Route] = []
    for number, rule in enumerate(rules.http):
        matches: Iterable[HTTPMatch | None] = rule.match or (None,)
        for index, match in enumerate(matches):
            place = f"{rules} http[{number}]{f'.match[{index}]' if match is not None else ''}"
            why = misses(match, rules.gateways, port, scope) if match is not None else ""
            found = [] if why else route_matches(match, scope)
            if not found:
                scope.left_out.append(f"{place}: no, {why or _NEVER}")
            for route_match in found:
                route = _route(rule, match, route_match, port, scope)
                if route is None:
                    scope.left_out.append(f"{place}: no, it leads nowhere: its delegate is missing")
                    continue
                routes.append(route)
                if is_catch_all(route_match):
                    return routes
    return routes


def default_route(service: Service, port: int, scope: Scope) -> rc.Route:
    """The route of a service without rules."""
    action = rc.RouteAction(cluster=str(ClusterName(port, "", service.hostname)))
    actions.set_timeout(None, action, scope)
    affinity = actions.affinity(service, port, "", scope)
    if affinity is not None:
        actions.hash_policy(affinity, action, scope)
    retry = retry_policy(None, scope, consistent_hash=affinity is not None)
    if retry is not None:
        action.retry_policy.CopyFrom(retry)
    return rc.Route(name="default", match=rc.RouteMatch(prefix="/"), route=action)


def _route(
    rule: HTTPRoute, match: HTTPMatch | None, route_match: rc.RouteMatch, port: int, scope: Scope
) -> rc.Route | None:
    named = ".".join(filter(None, (rule.name, match.name if match else "")))
    out = rc.Route(name=named, match=route_match)
    if match is not None and match.stat_prefix and scope.dialect is not Dialect.GRPC:
        out.stat_prefix = match.stat_prefix
    authority = actions.mutations(rule.headers, out, scope)
    add_route_filters(rule, out, scope)
    if rule.redirect is not None:
        out.redirect.CopyFrom(actions.redirect_action(rule.redirect, port))
    elif rule.direct_response is not None:
        out.direct_response.status = rule.direct_response.status
        if rule.direct_response.body is not None:
            out.direct_response.body.inline_bytes = rule.direct_response.body.content
    elif rule.route:
        actions.forward(rule, out, authority, port, scope)
    else:
        return None  # a delegate that is missing or invisible (V27)
    if scope.dialect is Dialect.GRPC and not out.HasField("route"):
        scope.note("redirect and directResponse fail the call in gRPC's own client")
    return out
