"""Virtual hosts and routes from VirtualServices; shared by every dialect.

Source: Istio networking/core/route; the letters and numbers are those of the semantics list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2 as rc
from envoy.config.route.v3 import route_pb2

from controlplane.model.hosts import is_wildcard, single_address
from controlplane.model.policy import ConsistentHash
from controlplane.model.traffic import (
    Destination,
    Headers,
    HTTPMatch,
    HTTPRedirect,
    HTTPRewrite,
    HTTPRoute,
    RouteDestination,
    VirtualServiceConfig,
)
from controlplane.translate import layer4
from controlplane.translate.filters import add_route_filters
from controlplane.translate.matches import applies, is_catch_all, route_matches
from controlplane.translate.node import Dialect
from controlplane.translate.retries import retry_policy
from controlplane.translate.scope import PASSTHROUGH, ClusterName, Scope
from controlplane.translate.wire import duration, fraction
from controlplane.world import Service, ServicePort

Append = base_pb2.HeaderValueOption.HeaderAppendAction
_REDIRECT_CODES = {0: 0, 301: 0, 302: 1, 303: 2, 307: 3, 308: 4}
_DEFAULT_PORTS = {"http": 80, "https": 443}


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
    rules = scope.rules(target.hostname)
    routes: list[rc.Route] = []
    if rules and _passes_bytes(port):
        routes = _bytes_routes(rules, target, port, scope)
    elif rules:
        routes = service_routes(rules, target, port.number, scope)
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
        route = rc.Route(name="allow_any", match=match, route=action)
        return [rc.VirtualHost(name="allow_any", domains=["*"], routes=[route])]
    block = rc.DirectResponseAction(status=502)
    route = rc.Route(name="block_all", match=match, direct_response=block)
    return [rc.VirtualHost(name="block_all", domains=["*"], routes=[route])]


def _passes_bytes(port: ServicePort) -> bool:
    """No L7 rule applies: the protocol is declared and is not HTTP in the clear."""
    return not port.protocol.is_http and port.protocol.value != "UnsupportedProtocol"


def _bytes_routes(
    rules: VirtualServiceConfig, service: Service, port: ServicePort, scope: Scope
) -> list[rc.Route]:
    targets = _weighing(layer4.destinations(rules, service, port, scope))
    clusters = [
        (str(cluster_of(target.destination, port.number, scope)), target.weight)
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
        yield from _with_port(f"[{ip}]" if ip.version == 6 else str(ip), port)


def _with_port(host: str, port: int) -> tuple[str, ...]:
    # `*:80` would be a second catch-all to some and a literal to others.
    return (host,) if host == "*" else (host, f"{host}:{port}")


# --- routes ----------------------------------------------------------------------------------


def service_routes(
    rules: VirtualServiceConfig, service: Service | None, port: int, scope: Scope
) -> list[rc.Route]:
    """The routes of a VirtualService for one listener port, first match wins (V2)."""
    routes: list[rc.Route] = []
    for rule in rules.http:
        matches: Iterable[HTTPMatch | None] = rule.match or (None,)
        for match in matches:
            if match is not None and not applies(match, rules.gateways, port, scope):
                continue
            for route_match in route_matches(match, scope):
                route = _route(rule, match, route_match, port, scope)
                if route is None:
                    continue
                routes.append(route)
                if is_catch_all(route_match):
                    return routes
    return routes


def default_route(service: Service, port: int, scope: Scope) -> rc.Route:
    """The route of a service without rules."""
    action = rc.RouteAction(cluster=str(ClusterName(port, "", service.hostname)))
    _timeout(None, action, scope)
    affinity = _affinity(service, port, "", scope)
    if affinity is not None:
        _hash_policies(affinity, action, scope)
    retry = retry_policy(None, scope, consistent_hash=affinity is not None)
    if retry is not None:
        action.retry_policy.CopyFrom(retry)
    return rc.Route(name="default", match=rc.RouteMatch(prefix="/"), route=action)


def _route(
    rule: HTTPRoute, match: HTTPMatch | None, route_match: rc.RouteMatch, port: int, scope: Scope
) -> rc.Route | None:
    named = ".".join(filter(None, (rule.name, match.name if match else "")))
    out = rc.Route(name=named, match=route_match)
    authority = _mutations(rule.headers, out, scope)
    add_route_filters(rule, out, scope)
    if rule.redirect is not None:
        out.redirect.CopyFrom(_redirect(rule.redirect, port))
    elif rule.direct_response is not None:
        out.direct_response.status = rule.direct_response.status
        if rule.direct_response.body is not None:
            out.direct_response.body.inline_bytes = rule.direct_response.body.content
    elif rule.route:
        _forward(rule, out, authority, port, scope)
    else:
        return None  # a delegate that is missing or invisible (V27)
    if scope.dialect is Dialect.GRPC and not out.HasField("route"):
        scope.note("redirect and directResponse fail the call in gRPC's own client")
    return out


def _forward(rule: HTTPRoute, out: rc.Route, authority: str, port: int, scope: Scope) -> None:
    action = out.route
    _timeout(rule.timeout, action, scope)
    targets = _weighing(rule.route)
    if len(targets) == 1:
        action.cluster = str(cluster_of(targets[0].destination, port, scope))
        below = _mutations(targets[0].headers, out, scope)
        authority = authority or below
    else:
        _weighted(targets, action, port, scope)
    _rewrite(rule.rewrite, authority, action, scope)
    _mirrors(rule, action, port, scope)
    affinity = None
    for target in targets:
        affinity = affinity or _affinity_of(target, port, scope)
    if affinity is not None:
        _hash_policies(affinity, action, scope)
    retry = retry_policy(rule.retries, scope, consistent_hash=affinity is not None)
    if retry is not None:
        action.retry_policy.CopyFrom(retry)


def _weighing(targets: Iterable[RouteDestination]) -> list[RouteDestination]:
    """Those that get something; a single one gets everything, whatever its weight (V10)."""
    listed = list(targets)
    if len(listed) < 2:
        return listed
    return [target for target in listed if target.weight > 0] or listed


def cluster_of(destination: Destination, port: int, scope: Scope) -> ClusterName:
    """The cluster of a destination: its port, else the service's only one, else the caller's (H16).

    A host that does not exist names a cluster that does not exist (V30).
    """
    found = scope.service(destination.host)
    service = scope.concrete(found) if found else None
    number = destination.port_number
    if not number:
        number = service.ports[0].number if service and len(service.ports) == 1 else port
    host = service.hostname if service else destination.host
    return ClusterName(number, destination.subset, host)


def _weighted(
    targets: list[RouteDestination], action: rc.RouteAction, port: int, scope: Scope
) -> None:
    for target in targets:
        entry = action.weighted_clusters.clusters.add()
        entry.name = str(cluster_of(target.destination, port, scope))
        entry.weight.value = target.weight
        authority = _mutations(target.headers, entry, scope)
        if authority and scope.dialect is not Dialect.GRPC:
            entry.host_rewrite_literal = authority


def _timeout(timeout: float | None, action: rc.RouteAction, scope: Scope) -> None:
    """No timeout unless the rule sets one; a caller's own gRPC deadline counts up to it (V15)."""
    limit = duration(timeout or 0)
    action.timeout.CopyFrom(limit)
    action.max_stream_duration.grpc_timeout_header_max.CopyFrom(limit)
    if scope.dialect is Dialect.GRPC:
        action.max_stream_duration.max_stream_duration.CopyFrom(limit)


def _rewrite(
    rewrite: HTTPRewrite | None, authority: str, action: rc.RouteAction, scope: Scope
) -> None:
    if rewrite is not None:
        authority = rewrite.authority or authority
        if rewrite.uri_regex_rewrite is not None:
            action.regex_rewrite.pattern.regex = rewrite.uri_regex_rewrite.match
            action.regex_rewrite.substitution = rewrite.uri_regex_rewrite.rewrite
        elif rewrite.uri:
            action.prefix_rewrite = rewrite.uri
    if authority:
        action.host_rewrite_literal = authority
    if scope.dialect is Dialect.GRPC and (rewrite is not None or authority):
        scope.note("rewrite is not known to gRPC's own client: without effect")


def _redirect(redirect: HTTPRedirect, port: int) -> rc.RedirectAction:
    out = rc.RedirectAction(host_redirect=redirect.authority)
    if redirect.prefix_rewrite:
        out.prefix_rewrite = redirect.prefix_rewrite
    elif redirect.uri:
        out.path_redirect = redirect.uri
    if redirect.scheme:
        out.scheme_redirect = redirect.scheme
    if redirect.port is not None:
        out.port_redirect = redirect.port
    elif redirect.derive_port == "FROM_REQUEST_PORT":
        out.port_redirect = port
    if out.port_redirect == _DEFAULT_PORTS.get(redirect.scheme or "http"):
        out.port_redirect = 0
    out.response_code = _REDIRECT_CODES.get(redirect.redirect_code, 0)
    return out


def _mirrors(rule: HTTPRoute, action: rc.RouteAction, port: int, scope: Scope) -> None:
    wanted = [(mirror.destination, mirror.percentage) for mirror in rule.mirrors]
    if rule.mirror is not None:
        wanted.append((rule.mirror, rule.mirror_percentage))
    if wanted and scope.dialect is Dialect.GRPC:
        scope.note("mirror is not known to gRPC's own client: left out")
        return
    for destination, percentage in wanted:
        share = fraction(percentage, absent=100)
        if not share.numerator:
            continue
        policy = action.request_mirror_policies.add()
        policy.cluster = str(cluster_of(destination, port, scope))
        policy.runtime_fraction.default_value.CopyFrom(share)


# --- headers ---------------------------------------------------------------------------------


def _mutations(
    headers: Headers | None, out: rc.Route | rc.WeightedCluster.ClusterWeight, scope: Scope
) -> str:
    """Adds header changes to a route or a weighted cluster; the authority that they set (V11)."""
    if headers is None:
        return ""
    if scope.dialect is Dialect.GRPC:
        scope.note("header changes are not known to gRPC's own client: left out")
        return ""
    request, response = headers.request, headers.response
    authority = ""
    for values in (request.add, request.set):
        for name in values:
            if name.lower() in ("host", ":authority"):
                authority = values[name]
    out.request_headers_to_add.extend(_options(request.set, append=False))
    out.request_headers_to_add.extend(_options(request.add, append=True))
    out.request_headers_to_remove.extend(request.remove)
    out.response_headers_to_add.extend(_options(response.set, append=False))
    out.response_headers_to_add.extend(_options(response.add, append=True))
    out.response_headers_to_remove.extend(response.remove)
    return authority


def _options(values: dict[str, str], *, append: bool) -> Iterator[base_pb2.HeaderValueOption]:
    action = Append.APPEND_IF_EXISTS_OR_ADD if append else Append.OVERWRITE_IF_EXISTS_OR_ADD
    for name, value in sorted(values.items()):
        if name.lower() in ("host", ":authority"):
            continue
        yield base_pb2.HeaderValueOption(
            header=base_pb2.HeaderValue(key=name, value=value), append_action=action
        )


# --- consistent hash -------------------------------------------------------------------------


def _affinity_of(target: RouteDestination, port: int, scope: Scope) -> ConsistentHash | None:
    name = cluster_of(target.destination, port, scope)
    service = scope.service(name.host)
    return _affinity(service, name.port, name.subset, scope) if service else None


def _affinity(service: Service, port: int, subset: str, scope: Scope) -> ConsistentHash | None:
    balancer = scope.policy(service, port, subset).load_balancer
    return balancer.consistent_hash if balancer else None


def _hash_policies(asked: ConsistentHash, action: rc.RouteAction, scope: Scope) -> None:
    """What a request is hashed by (D10, D22); gRPC knows headers only."""
    if asked.http_header_name:
        action.hash_policy.add().header.header_name = asked.http_header_name
        return
    if scope.dialect is Dialect.GRPC:
        scope.note("consistentHash by anything but a header is random in gRPC's own client")
        return
    if asked.http_cookie is not None:
        cookie = action.hash_policy.add().cookie
        cookie.name, cookie.path = asked.http_cookie.name, asked.http_cookie.path
        if asked.http_cookie.ttl is not None:
            cookie.ttl.CopyFrom(duration(asked.http_cookie.ttl))
    elif asked.use_source_ip:
        action.hash_policy.add().connection_properties.source_ip = True
    elif asked.http_query_parameter_name:
        parameter = asked.http_query_parameter_name
        action.hash_policy.add().query_parameter.name = parameter
