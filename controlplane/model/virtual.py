"""VirtualService documents → the rules of the mesh: names qualified, delegates merged. Pure.

Source: Istio pilot/pkg/model/virtualservice.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from controlplane.model.hosts import qualify
from controlplane.model.meshconfig import MeshConfig
from controlplane.model.registry import exported_to
from controlplane.model.resource import Finding, Level, Resource
from controlplane.model.traffic import (
    MESH_GATEWAY,
    Destination,
    HTTPFault,
    HTTPMatch,
    HTTPRoute,
    Percent,
    StringMatch,
    TCPRoute,
    TLSRoute,
    VirtualServiceConfig,
    VirtualServiceSpec,
)

replace = msgspec.structs.replace


def virtual_services(
    resources: Iterable[Resource], mesh: MeshConfig
) -> tuple[tuple[VirtualServiceConfig, ...], list[Finding]]:
    """All rules that have hosts, oldest first (H10), and what went wrong with their delegates."""
    ordered = sorted(resources, key=lambda resource: resource.age_key)
    specs = {id(resource): qualified(resource, mesh.domain) for resource in ordered}
    delegates = {
        (resource.namespace, resource.name): (resource, specs[id(resource)])
        for resource in ordered
        if not specs[id(resource)].hosts
    }
    rules: list[VirtualServiceConfig] = []
    findings: list[Finding] = []
    for resource in ordered:
        spec = specs[id(resource)]
        if not spec.hosts:
            continue
        if any(route.delegate is not None for route in spec.http):
            spec = _with_delegates(resource, spec, delegates, mesh, findings)
        rules.append(
            VirtualServiceConfig(
                name=resource.name,
                namespace=resource.namespace,
                spec=spec,
                export_to=_export_to(spec, mesh),
                labels=resource.labels,
                created=resource.created,
                origin=resource.origin,
            )
        )
    return tuple(rules), findings


def _export_to(spec: VirtualServiceSpec, mesh: MeshConfig) -> frozenset[str]:
    return frozenset(spec.export_to) or mesh.default_virtual_service_export_to


# --- names --------------------------------------------------------------------------------------


def qualified(resource: Resource, domain: str) -> VirtualServiceSpec:
    """The spec with hosts and gateways fully qualified and deprecated spellings replaced."""
    spec: VirtualServiceSpec = resource.typed
    namespace = resource.namespace

    def full(host: str) -> str:
        return qualify(host, namespace, domain)

    def gateways(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(gateway_name(name, namespace) for name in names)

    return replace(
        spec,
        hosts=tuple(full(host) for host in spec.hosts),
        gateways=gateways(spec.gateways) or ((MESH_GATEWAY,) if spec.hosts else ()),
        http=tuple(_http(route, full, gateways) for route in spec.http),
        tls=tuple(_layer4(route, full, gateways) for route in spec.tls),
        tcp=tuple(_layer4(route, full, gateways) for route in spec.tcp),
    )


def gateway_name(name: str, namespace: str) -> str:
    """`mesh`, or `namespace/name` of a gateway named in a rule of `namespace` (V1)."""
    if name == MESH_GATEWAY:
        return name
    owner, slash, rest = name.partition("/")
    if slash:
        return f"{namespace}/{rest}" if owner == "." else name
    if "." not in name:
        return f"{namespace}/{name}"
    parts = name.split(".")  # the old form name.namespace.svc.domain
    return f"{parts[1]}/{parts[0]}"


_Full = Callable[[str], str]
_Gateways = Callable[[tuple[str, ...]], tuple[str, ...]]


def _destination(destination: Destination, full: _Full) -> Destination:
    return replace(destination, host=full(destination.host))


def _http(route: HTTPRoute, full: _Full, gateways: _Gateways) -> HTTPRoute:
    percent = route.mirror_percent if route.mirror_percent is not None else route.mirror_percent_old
    percentage = route.mirror_percentage
    if percentage is None and percent is not None:
        percentage = Percent(value=float(percent))
    return replace(
        route,
        match=tuple(replace(match, gateways=gateways(match.gateways)) for match in route.match),
        route=tuple(
            replace(item, destination=_destination(item.destination, full)) for item in route.route
        ),
        mirror=_destination(route.mirror, full) if route.mirror else None,
        mirrors=tuple(
            replace(item, destination=_destination(item.destination, full))
            for item in route.mirrors
        ),
        mirror_percentage=percentage,
        mirror_percent=None,
        mirror_percent_old=None,
        fault=_fault(route.fault),
    )


def _fault(fault: HTTPFault | None) -> HTTPFault | None:
    if fault is None or fault.delay is None or fault.delay.percentage or not fault.delay.percent:
        return fault
    percentage = Percent(value=float(fault.delay.percent))
    return replace(fault, delay=replace(fault.delay, percentage=percentage, percent=0))


def _layer4(route: Any, full: _Full, gateways: _Gateways) -> Any:
    """TLSRoute or TCPRoute."""
    assert isinstance(route, TLSRoute | TCPRoute)
    return replace(
        route,
        match=tuple(replace(match, gateways=gateways(match.gateways)) for match in route.match),
        route=tuple(
            replace(item, destination=_destination(item.destination, full)) for item in route.route
        ),
    )


# --- delegates ----------------------------------------------------------------------------------

_Delegates = Mapping[tuple[str, str], tuple[Resource, VirtualServiceSpec]]


def _with_delegates(
    root: Resource,
    spec: VirtualServiceSpec,
    delegates: _Delegates,
    mesh: MeshConfig,
    findings: list[Finding],
) -> VirtualServiceSpec:
    routes: list[HTTPRoute] = []
    for index, route in enumerate(spec.http):
        if route.delegate is None:
            routes.append(route)
            continue
        path = f"spec.http[{index}].delegate"
        namespace = route.delegate.namespace or root.namespace
        found = delegates.get((namespace, route.delegate.name))
        name = f"{namespace}/{route.delegate.name}"
        if found is None:
            problem = f"delegate VirtualService {name} does not exist (or has hosts of its own)"
            findings.append(root.finding(Level.ERROR, "IST0101", problem, path))
            continue
        if not exported_to(_export_to(found[1], mesh), namespace, root.namespace):
            problem = f"delegate VirtualService {name} is not exported to {root.namespace}"
            findings.append(root.finding(Level.ERROR, "MSH0110", problem, path))
            continue
        merged = merge_routes(route, found[1].http)
        if len(merged) < len(found[1].http):
            problem = (
                f"{len(found[1].http) - len(merged)} of the {len(found[1].http)} routes of {name}"
                " conflict with this rule's match and are dropped"
            )
            findings.append(root.finding(Level.WARNING, "MSH0111", problem, path))
        routes += merged
    return replace(spec, http=tuple(routes))


def merge_routes(root: HTTPRoute, delegate: Iterable[HTTPRoute]) -> list[HTTPRoute]:
    """The delegate's routes inside one rule of the root; conflicting ones are dropped (V28)."""
    merged = (_merge_route(root, route) for route in delegate)
    return [route for route in merged if route is not None]


# Fields that the root fills in where the delegate leaves them unset (V29).
_INHERITED = (
    "rewrite",
    "direct_response",
    "timeout",
    "retries",
    "fault",
    "mirror",
    "mirrors",
    "mirror_percent",
    "mirror_percentage",
    "cors_policy",
    "headers",
)


def _merge_route(root: HTTPRoute, delegate: HTTPRoute) -> HTTPRoute | None:
    match = merge_matches(root.match, delegate.match)
    if match is None:
        return None
    inherited = {name: getattr(delegate, name) or getattr(root, name) for name in _INHERITED}
    if delegate.timeout is not None:
        inherited["timeout"] = delegate.timeout  # 0 s is a value
    return replace(delegate, match=match, name=_joined(root.name, delegate.name), **inherited)


def _joined(root: str, delegate: str) -> str:
    return f"{root}-{delegate}" if root and delegate else root or delegate


def merge_matches(
    root: tuple[HTTPMatch, ...], delegate: tuple[HTTPMatch, ...]
) -> tuple[HTTPMatch, ...] | None:
    """Both lists of alternatives AND-ed; None when an alternative fits no alternative of root."""
    if not root or not delegate:
        return delegate or root
    merged: list[HTTPMatch] = []
    for leaf in delegate:
        fitting = [_merge_match(base, leaf) for base in root if not conflicts(base, leaf)]
        if not fitting:
            return None
        merged += fitting
    return tuple(merged)


def _merge_match(root: HTTPMatch, leaf: HTTPMatch) -> HTTPMatch:
    return replace(
        leaf,
        name=_joined(root.name, leaf.name),
        uri=leaf.uri or root.uri,
        scheme=leaf.scheme or root.scheme,
        method=leaf.method or root.method,
        authority=leaf.authority or root.authority,
        headers={**root.headers, **leaf.headers},
        without_headers={**root.without_headers, **leaf.without_headers},
        query_params={**root.query_params, **leaf.query_params},
        port=leaf.port or root.port,
        source_labels={**root.source_labels, **leaf.source_labels},
        source_namespace=leaf.source_namespace or root.source_namespace,
        gateways=leaf.gateways or root.gateways,
        stat_prefix=leaf.stat_prefix or root.stat_prefix,
    )


def conflicts(root: HTTPMatch, leaf: HTTPMatch) -> bool:
    """Whether a delegate's match is not a narrowing of the root's."""
    for name in ("uri", "scheme", "method", "authority"):
        if _string_conflict(getattr(root, name), getattr(leaf, name)):
            return True
    for name in ("headers", "without_headers", "query_params"):
        wide, narrow = getattr(root, name), getattr(leaf, name)
        if any(_string_conflict(wide.get(key), value) for key, value in narrow.items()):
            return True
    if root.ignore_uri_case != leaf.ignore_uri_case:
        return True
    if root.port and leaf.port and root.port != leaf.port:
        return True
    labels = root.source_labels
    if any(labels.get(key, value) != value for key, value in leaf.source_labels.items()):
        return True
    if root.source_namespace and leaf.source_namespace not in ("", root.source_namespace):
        return True
    return bool(root.gateways) and not set(leaf.gateways) <= set(root.gateways)


def _string_conflict(root: StringMatch | None, leaf: StringMatch | None) -> bool:
    if root is None or leaf is None:
        return False
    if root.regex or leaf.regex:
        # Two patterns cannot be compared: only a side without any value leaves room.
        return not (root.is_presence or leaf.is_presence)
    if root.exact:
        return leaf.exact != root.exact
    if root.prefix:
        return not (leaf.exact or leaf.prefix or "").startswith(root.prefix)
    return False
