"""What a route does with a request: forward, mirror, redirect, change headers, hash.

Source: Istio networking/core/route; the letters and numbers are those of the semantics list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2 as rc

from controlplane.model.policy import ConsistentHash
from controlplane.model.traffic import (
    Destination,
    Headers,
    HTTPRedirect,
    HTTPRewrite,
    HTTPRoute,
    RouteDestination,
)
from controlplane.translate.node import Dialect
from controlplane.translate.retries import retry_policy
from controlplane.translate.scope import ClusterName, Scope
from controlplane.translate.wire import duration, fraction
from controlplane.world import Service

Append = base_pb2.HeaderValueOption.HeaderAppendAction
_REDIRECT_CODES = {0: 0, 301: 0, 302: 1, 303: 2, 307: 3, 308: 4}
_DEFAULT_PORTS = {"http": 80, "https": 443}


def forward(rule: HTTPRoute, out: rc.Route, authority: str, port: int, scope: Scope) -> None:
    action = out.route
    set_timeout(rule.timeout, action, scope)
    targets = weighing(rule.route)
    if len(targets) == 1:
        action.cluster = str(cluster_of(targets[0].destination, port, scope))
        below = mutations(targets[0].headers, out, scope)
        authority = authority or below
    else:
        _weighted(targets, action, port, scope)
    _rewrite(rule.rewrite, authority, action, scope)
    _mirrors(rule, action, port, scope)
    asked = [_affinity_of(target, port, scope) for target in targets]
    for one in asked:  # each destination adds its own, as in Istio
        if one is not None:
            hash_policy(one, action, scope)
    # Going elsewhere would break the affinity; with several destinations Istio takes that (V19).
    sticky = len(targets) == 1 and asked[0] is not None
    retry = retry_policy(rule.retries, scope, consistent_hash=sticky)
    if retry is not None:
        action.retry_policy.CopyFrom(retry)


def weighing(targets: Iterable[RouteDestination]) -> list[RouteDestination]:
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
        authority = mutations(target.headers, entry, scope)
        if authority and scope.dialect is not Dialect.GRPC:
            entry.host_rewrite_literal = authority


def set_timeout(timeout: float | None, action: rc.RouteAction, scope: Scope) -> None:
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


def redirect_action(redirect: HTTPRedirect, port: int) -> rc.RedirectAction:
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
    wanted = [(rule.mirror, rule.mirror_percentage)] if rule.mirror is not None else []
    wanted += [(mirror.destination, mirror.percentage) for mirror in rule.mirrors]
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
        policy.disable_shadow_host_suffix_append = True  # as Istio does since 1.28


# --- headers ---------------------------------------------------------------------------------


def mutations(
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
    out.request_headers_to_remove.extend(_removable(request.remove))
    out.response_headers_to_add.extend(_options(response.set, append=False))
    out.response_headers_to_add.extend(_options(response.add, append=True))
    out.response_headers_to_remove.extend(_removable(response.remove))
    return authority


def _is_internal(name: str) -> bool:
    """What no header change may touch: pseudo headers and the host."""
    return name.startswith(":") or name.lower() == "host"


def _removable(names: Iterable[str]) -> list[str]:
    return [name for name in names if not _is_internal(name)]


def _options(values: dict[str, str], *, append: bool) -> Iterator[base_pb2.HeaderValueOption]:
    action = Append.APPEND_IF_EXISTS_OR_ADD if append else Append.OVERWRITE_IF_EXISTS_OR_ADD
    for name, value in sorted(values.items()):
        if _is_internal(name):
            continue
        yield base_pb2.HeaderValueOption(
            header=base_pb2.HeaderValue(key=name, value=value), append_action=action
        )


# --- consistent hash -------------------------------------------------------------------------


def _affinity_of(target: RouteDestination, port: int, scope: Scope) -> ConsistentHash | None:
    name = cluster_of(target.destination, port, scope)
    service = scope.service(name.host)
    return affinity(service, name.port, name.subset, scope) if service else None


def affinity(service: Service, port: int, subset: str, scope: Scope) -> ConsistentHash | None:
    balancer = scope.policy(service, port, subset).load_balancer
    return balancer.consistent_hash if balancer else None


def hash_policy(asked: ConsistentHash, action: rc.RouteAction, scope: Scope) -> None:
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
        for attribute in asked.http_cookie.attributes:
            cookie.attributes.add(name=attribute.name, value=attribute.value)
    elif asked.use_source_ip:
        action.hash_policy.add().connection_properties.source_ip = True
    elif asked.http_query_parameter_name:
        parameter = asked.http_query_parameter_name
        action.hash_policy.add().query_parameter.name = parameter
