"""EnvoyFilters laid over what an SDK node gets, under Istio's conditions.

Source: Istio networking/core/envoyfilter (cluster_patch, rc_patch, listener_patch), proto/merge.
A listener here has one port, and its route configuration is that of this port in Istio.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2 as cl
from envoy.config.route.v3 import route_components_pb2 as rc
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from google.protobuf import any_pb2, descriptor_pool, duration_pb2, message_factory

from controlplane.model.envoyfilter import EnvoyFilterSpec, Patch, patches
from controlplane.model.resource import Resource
from controlplane.model.workloads import contains
from controlplane.translate.node import VERSION, Dialect, Variant
from controlplane.translate.scope import ClusterName, Scope

_MERGES = ("MERGE", "MERGE_AND_REPLACE_LIST")
_ADDS = ("ADD", "INSERT_BEFORE", "INSERT_AFTER", "INSERT_FIRST")


class Patches:
    """The patches for one variant of nodes, in their order."""

    @classmethod
    def of(cls, scope: Scope) -> Patches:
        """Those for the callers of a scope; none for gRPC's own client."""
        world = scope.world
        if scope.dialect is Dialect.GRPC:
            if world.envoy_filters:
                scope.note("EnvoyFilters are not applied to gRPC's own client")
            return cls((), scope.variant, "")
        return cls(world.envoy_filters, scope.variant, world.mesh.root_namespace)

    def __init__(self, resources: Iterable[Resource], variant: Variant, root: str) -> None:
        self._by_kind: dict[str, list[Patch]] = {}
        labels, metadata = dict(variant.labels), dict(variant.metadata)
        for resource in resources:
            spec: EnvoyFilterSpec = resource.typed
            if resource.namespace not in (variant.namespace, root) or spec.target_refs:
                continue
            if not contains(labels, spec.labels):
                continue
            for patch in patches(resource):
                if patch.applies and _proxy_matches(patch, metadata):
                    self._by_kind.setdefault(patch.apply_to, []).append(patch)

    def __bool__(self) -> bool:
        return bool(self._by_kind)

    def _of(self, kind: str) -> list[Patch]:
        return self._by_kind.get(kind, [])

    # --- clusters ----------------------------------------------------------------------------

    def cluster(self, out: cl.Cluster) -> cl.Cluster | None:
        """A cluster as patched; None when it is removed."""
        for patch in self._of("CLUSTER"):
            if not _cluster_matches(patch, out.name):
                continue
            if patch.operation == "REMOVE":
                return None
            if patch.operation in _MERGES:
                _merge_cluster(out, patch)
        return out

    def added_clusters(self) -> Iterator[cl.Cluster]:
        """Clusters that exist by patches alone."""
        for patch in self._of("CLUSTER"):
            if patch.operation in _ADDS and patch.value is not None:
                yield patch.value

    # --- routes ------------------------------------------------------------------------------

    def routes(self, out: route_pb2.RouteConfiguration, port: int) -> None:
        """Patches a route configuration, its virtual hosts and its routes."""

        def on_port(kind: str) -> list[Patch]:
            return [patch for patch in self._of(kind) if _config_matches(patch, out, port)]

        for patch in on_port("ROUTE_CONFIGURATION"):
            if patch.operation in _MERGES:
                _merge(out, patch)
        hosts, routes = on_port("VIRTUAL_HOST"), on_port("HTTP_ROUTE")
        if not hosts and not routes:
            return
        kept = [
            changed
            for host in out.virtual_hosts
            if (changed := _patched_host(host, hosts, routes)) is not None
        ]
        kept += [patch.value for patch in hosts if patch.operation in _ADDS]
        copies = [_copy(host) for host in kept]
        del out.virtual_hosts[:]
        out.virtual_hosts.extend(copies)

    # --- listeners ---------------------------------------------------------------------------

    def manager(self, out: hcm_pb2.HttpConnectionManager, port: int) -> None:
        """Patches an HTTP connection manager and its filters."""
        for patch in self._of("NETWORK_FILTER"):
            if patch.operation == "MERGE" and _listener_matches(patch, port):
                asked = hcm_pb2.HttpConnectionManager()
                patch.value.typed_config.Unpack(asked)
                merge(out, asked)
        found = [patch for patch in self._of("HTTP_FILTER") if _listener_matches(patch, port)]
        if not found:
            return
        filters = [_copy(item) for item in out.http_filters]
        for patch in found:
            filters = _with_filter(filters, patch)
        for item in filters:
            for patch in found:
                if patch.operation in _MERGES and _filter_matches(patch, item.name):
                    _merge_typed(item, patch.value)
        del out.http_filters[:]
        out.http_filters.extend(_known_once(filters))


# --- conditions ------------------------------------------------------------------------------


def _proxy_matches(patch: Patch, metadata: dict[str, str]) -> bool:
    proxy = patch.match.proxy
    if proxy is None:
        return True
    if proxy.proxy_version:
        version = metadata.get(VERSION, "")
        if not version or re.search(proxy.proxy_version, version) is None:
            return False
    return all(metadata.get(key) == value for key, value in proxy.metadata.items())


def _cluster_matches(patch: Patch, name: str) -> bool:
    match = patch.match.cluster
    if match is None:
        return True
    if match.name:
        return match.name == name
    parts = ClusterName.parse(name) or ClusterName(0, "", "")
    return (
        match.subset in ("", parts.subset)
        and match.service in ("", parts.host)
        and match.port_number in (0, parts.port)
    )


def _config_matches(patch: Patch, out: route_pb2.RouteConfiguration, port: int) -> bool:
    match = patch.match.route_configuration
    if match is None:
        return True
    # In Istio the route configuration of a sidecar bears the number of its port.
    return match.port_number in (0, port) and match.name in ("", str(port), out.name)


def _host_matches(patch: Patch, host: rc.VirtualHost) -> bool:
    match = patch.match.route_configuration
    if match is None or match.vhost is None:
        return True
    if match.vhost.domain_name and match.vhost.domain_name not in host.domains:
        return False
    return match.vhost.name in ("", host.name)


_ACTIONS = {"ROUTE": "route", "REDIRECT": "redirect", "DIRECT_RESPONSE": "direct_response"}


def _route_matches(patch: Patch, route: rc.Route) -> bool:
    match = patch.match.route_configuration
    if match is None or match.vhost is None or match.vhost.route is None:
        return True
    wanted = match.vhost.route
    if wanted.name and wanted.name != route.name:
        return False
    return wanted.action == "ANY" or route.WhichOneof("action") == _ACTIONS.get(wanted.action)


def _listener_matches(patch: Patch, port: int) -> bool:
    match = patch.match.listener
    if match is None:
        return True
    if match.name and match.name != f"0.0.0.0_{port}":
        return False
    if match.port_number not in (0, port):
        return False
    chain = match.filter_chain
    if chain is None:
        return True
    # The filter chain of plain HTTP: without name, server name, protocol and socket to match.
    named = chain.name or chain.sni or chain.transport_protocol or chain.application_protocols
    return not (named or chain.transport_socket or chain.destination_port)


def _sub_filter(patch: Patch) -> str | None:
    chain = patch.match.listener.filter_chain if patch.match.listener else None
    inner = chain.filter.sub_filter if chain is not None and chain.filter is not None else None
    return inner.name if inner is not None else None


def _filter_matches(patch: Patch, name: str) -> bool:
    return _sub_filter(patch) in (None, name)


# --- operations ------------------------------------------------------------------------------


def _patched_host(
    host: rc.VirtualHost, hosts: Iterable[Patch], routes: list[Patch]
) -> rc.VirtualHost | None:
    for patch in hosts:
        if not _host_matches(patch, host):
            continue
        if patch.operation == "REMOVE":
            return None
        if patch.operation in _MERGES:
            _merge(host, patch)
        elif patch.operation == "REPLACE":
            host = _copy(patch.value)
    found = [patch for patch in routes if _host_matches(patch, host)]
    if found:
        kept = [
            route
            for route in host.routes
            if not any(p.operation == "REMOVE" and _route_matches(p, route) for p in found)
        ]
        for patch in found:
            for route in kept if patch.operation in _MERGES else ():
                if _route_matches(patch, route):
                    _merge(route, patch)
        listed: list[Any] = [_copy(route) for route in kept]
        for patch in found:
            listed = _inserted(listed, patch, _has_route(patch), _matcher(_route_matches, patch))
        del host.routes[:]
        host.routes.extend(listed)
    return host


def _has_route(patch: Patch) -> bool:
    match = patch.match.route_configuration
    return match is not None and match.vhost is not None and match.vhost.route is not None


def _matcher(matches: Callable[[Patch, Any], bool], patch: Patch) -> Callable[[Any], bool]:
    return lambda item: matches(patch, item)


def _inserted(
    listed: list[Any], patch: Patch, anchored: bool, matches: Callable[[Any], bool]
) -> list[Any]:
    """The list with what a patch adds, beside the first item that it matches."""
    operation = patch.operation
    if operation not in _ADDS:
        return listed
    if operation == "ADD" or (operation == "INSERT_AFTER" and not anchored):
        return [*listed, _copy(patch.value)]
    if not anchored:
        return [_copy(patch.value), *listed]
    place = next((index for index, item in enumerate(listed) if matches(item)), None)
    if place is None:
        return listed
    if operation == "INSERT_FIRST":
        place = 0
    elif operation == "INSERT_AFTER":
        place += 1
    return [*listed[:place], _copy(patch.value), *listed[place:]]


def _with_filter(filters: list[Any], patch: Patch) -> list[Any]:
    name = _sub_filter(patch)
    if patch.operation == "INSERT_FIRST":
        return [_copy(patch.value), *filters]
    if patch.operation == "REMOVE" and name is not None:
        return [item for item in filters if item.name != name]
    if patch.operation == "REPLACE" and name is not None:
        return [_copy(patch.value) if item.name == name else item for item in filters]
    return _inserted(filters, patch, name is not None, lambda item: item.name == name)


def _known_once(filters: list[Any]) -> list[Any]:
    """The filters as clients take them: each name once, the router last.

    Envoy ends every chain with the router; a filter behind it would never be asked.
    """
    once = {item.name: item for item in filters}
    routers = [item for item in once.values() if item.typed_config.TypeName().endswith(".Router")]
    if not routers:
        return list(once.values())
    behind = list(once.values()).index(routers[0])
    return list(once.values())[:behind] + routers[:1]


# --- merging ---------------------------------------------------------------------------------


def _merge(out: Any, patch: Patch) -> None:
    if patch.value is not None:
        merge(out, patch.value, replace_lists=patch.operation == "MERGE_AND_REPLACE_LIST")


def merge(out: Any, asked: Any, *, replace_lists: bool = False) -> None:
    """Lays a message over another: lists are appended to, durations replaced, the rest merged."""
    _make_room(out, asked, replace_lists)
    out.MergeFrom(asked)


def _make_room(out: Any, asked: Any, replace_lists: bool) -> None:
    """Clears what would be added up or appended to and is to be replaced."""
    if isinstance(asked, any_pb2.Any):
        return
    for field, value in asked.ListFields():
        kind = field.message_type
        if field.is_repeated:
            is_map = kind is not None and kind.GetOptions().map_entry
            if replace_lists and not is_map:
                out.ClearField(field.name)
        elif kind is None:
            continue
        elif kind.full_name == duration_pb2.Duration.DESCRIPTOR.full_name:
            out.ClearField(field.name)
        elif out.HasField(field.name):
            _make_room(getattr(out, field.name), value, replace_lists)


def _merge_typed(item: Any, asked: Any) -> None:
    """Merges a filter or a transport socket: what both hold of one type goes together."""
    if asked is None or not item.HasField("typed_config"):
        return
    if asked.name:
        item.name = asked.name
    if asked.HasField("typed_config"):
        merged = _merged_any(item.typed_config, asked.typed_config)
        item.typed_config.CopyFrom(merged)
    for name in ("disabled", "is_optional"):
        if name in asked.DESCRIPTOR.fields_by_name and getattr(asked, name):
            setattr(item, name, True)


def _merged_any(out: any_pb2.Any, asked: any_pb2.Any) -> any_pb2.Any:
    if out.TypeName() != asked.TypeName():
        return out
    known = descriptor_pool.Default().FindMessageTypeByName(out.TypeName())
    kind = message_factory.GetMessageClass(known)
    base, above = kind(), kind()
    out.Unpack(base)
    asked.Unpack(above)
    merge(base, above)
    packed = any_pb2.Any()
    packed.Pack(base, deterministic=True)
    return packed


def _merge_cluster(out: cl.Cluster, patch: Patch) -> None:
    asked = patch.value
    if asked is None:
        return
    if not asked.HasField("transport_socket"):
        _merge(out, patch)
        return
    if (
        out.HasField("transport_socket")
        and out.transport_socket.name == asked.transport_socket.name
    ):
        _merge_typed(out.transport_socket, asked.transport_socket)
    else:
        out.transport_socket.CopyFrom(asked.transport_socket)


def _copy(message: Any) -> Any:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied
