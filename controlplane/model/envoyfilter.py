"""EnvoyFilter as frozen types, its patches as Envoy's messages, and what they mean to SDK nodes.

An SDK node has one listener for each host and port that it calls, with an HTTP connection manager,
routes and clusters: patches of those apply. What has no counterpart in it is named (`unhonoured`).
Source: Istio pilot/pkg/model/envoyfilter.go, pkg/config/xds.
"""

# ruff: noqa: RUF012 - msgspec makes a fresh copy of an empty default
from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from google.protobuf import json_format
from google.protobuf.message import Message

from controlplane.model.entries import LabelSelector
from controlplane.model.resource import Resource
from controlplane.model.traffic import Spec


class ProxyMatch(Spec, frozen=True):
    proxy_version: str = ""
    metadata: dict[str, str] = {}


class NamedFilter(Spec, frozen=True):
    name: str = ""


class FilterMatch(Spec, frozen=True):
    name: str = ""
    sub_filter: NamedFilter | None = None


class FilterChainMatch(Spec, frozen=True):
    name: str = ""
    sni: str = ""
    transport_protocol: str = ""
    transport_socket: str = ""
    application_protocols: str = ""
    filter: FilterMatch | None = None
    destination_port: int = 0


class ListenerMatch(Spec, frozen=True):
    port_number: int = 0
    port_name: str = ""
    filter_chain: FilterChainMatch | None = None
    listener_filter: str = ""
    name: str = ""


class RouteMatch(Spec, frozen=True):
    name: str = ""
    action: str = "ANY"


class VirtualHostMatch(Spec, frozen=True):
    name: str = ""
    domain_name: str = ""
    route: RouteMatch | None = None


class RouteConfigurationMatch(Spec, frozen=True):
    port_number: int = 0
    port_name: str = ""
    gateway: str = ""
    vhost: VirtualHostMatch | None = None
    name: str = ""


class ClusterMatch(Spec, frozen=True):
    port_number: int = 0
    service: str = ""
    subset: str = ""
    name: str = ""


class ObjectMatch(Spec, frozen=True):
    context: str = "ANY"
    proxy: ProxyMatch | None = None
    listener: ListenerMatch | None = None
    route_configuration: RouteConfigurationMatch | None = None
    cluster: ClusterMatch | None = None
    waypoint: dict[str, Any] | None = None


class PatchBody(Spec, frozen=True):
    operation: str = "INVALID"
    value: dict[str, Any] | None = None
    filter_class: str = "UNSPECIFIED"


class ConfigPatch(Spec, frozen=True):
    apply_to: str = "INVALID"
    match: ObjectMatch = ObjectMatch()
    patch: PatchBody = PatchBody()


class EnvoyFilterSpec(Spec, frozen=True):
    workload_selector: LabelSelector | None = None
    target_refs: tuple[dict[str, Any], ...] = ()
    config_patches: tuple[ConfigPatch, ...] = ()
    priority: int = 0

    @property
    def labels(self) -> dict[str, str]:
        return self.workload_selector.labels if self.workload_selector else {}


# --- values as messages ----------------------------------------------------------------------

_TYPES: dict[str, type[Message]] = {
    "LISTENER": listener_pb2.Listener,
    "FILTER_CHAIN": listener_components_pb2.FilterChain,
    "LISTENER_FILTER": listener_components_pb2.ListenerFilter,
    "NETWORK_FILTER": listener_components_pb2.Filter,
    "HTTP_FILTER": hcm_pb2.HttpFilter,
    "ROUTE_CONFIGURATION": route_pb2.RouteConfiguration,
    "VIRTUAL_HOST": route_components_pb2.VirtualHost,
    "HTTP_ROUTE": route_components_pb2.Route,
    "CLUSTER": cluster_pb2.Cluster,
    "EXTENSION_CONFIG": extension_pb2.TypedExtensionConfig,
    "BOOTSTRAP": bootstrap_pb2.Bootstrap,
}
_PREFIX = "type.googleapis.com/"


def build(apply_to: str, value: Mapping[str, Any], *, strict: bool = False) -> Message:
    """The value of a patch as the message that it is laid over.

    Args:
        strict: fields that the message does not have are mistakes.

    Raises:
        ValueError: it is not such a message; says where.
    """
    for url in _type_urls(value):
        _load(url)
    message = _TYPES[apply_to]()
    try:
        json_format.ParseDict(dict(value), message, ignore_unknown_fields=not strict)
    except (json_format.ParseError, TypeError, ValueError) as error:
        raise ValueError(str(error)) from None
    return message


def _type_urls(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(url := value.get("@type"), str):
            yield url
        for item in value.values():
            yield from _type_urls(item)
    elif isinstance(value, list):
        for item in value:
            yield from _type_urls(item)


@lru_cache(maxsize=512)
def _load(url: str) -> None:
    """Makes a message type known, so that an Any can hold it."""
    package = url.removeprefix(_PREFIX).rpartition(".")[0]
    try:
        found = importlib.import_module(package)
        for module in pkgutil.iter_modules(found.__path__):
            if module.name.endswith("_pb2"):
                importlib.import_module(f"{package}.{module.name}")
    except (ImportError, AttributeError, ValueError):
        return  # an unknown type: reading the value says so


# --- what SDK nodes make of a patch ----------------------------------------------------------

MANAGER = "envoy.filters.network.http_connection_manager"
MANAGERS = (MANAGER, "envoy.http_connection_manager")
_MANAGER_TYPE = hcm_pb2.HttpConnectionManager.DESCRIPTOR.full_name
_FILTERS = "envoy.extensions.filters.http."
HTTP_FILTERS = frozenset(
    {
        f"{_FILTERS}fault.v3.HTTPFault",
        f"{_FILTERS}local_ratelimit.v3.LocalRateLimit",
        f"{_FILTERS}cors.v3.Cors",
        f"{_FILTERS}cors.v3.CorsPolicy",
        f"{_FILTERS}router.v3.Router",
    }
)
"""The types of filters that an SDK node has, with those of their settings per route."""

_HEADERS = frozenset(
    {
        "request_headers_to_add",
        "request_headers_to_remove",
        "response_headers_to_add",
        "response_headers_to_remove",
        "typed_per_filter_config",
        "metadata",
        "name",
    }
)
_HONOURED: dict[str, frozenset[str]] = {
    "CLUSTER": frozenset(
        {
            "name", "type", "cluster_type", "eds_cluster_config", "load_assignment", "metadata",
            "connect_timeout", "lb_policy", "load_balancing_policy", "common_lb_config",
            "round_robin_lb_config", "least_request_lb_config", "ring_hash_lb_config",
            "maglev_lb_config", "original_dst_lb_config", "circuit_breakers", "outlier_detection",
            "transport_socket", "transport_socket_matches", "typed_extension_protocol_options",
            "http2_protocol_options", "upstream_connection_options", "dns_refresh_rate",
            "dns_failure_refresh_rate", "dns_lookup_family", "respect_dns_ttl", "alt_stat_name",
        }
    ),
    "ROUTE_CONFIGURATION": _HEADERS
    | {
        "virtual_hosts", "most_specific_header_mutations_wins", "ignore_port_in_host_matching",
        "request_mirror_policies", "internal_only_headers",
    },
    "VIRTUAL_HOST": _HEADERS
    | {
        "domains", "routes", "matcher", "retry_policy", "hedge_policy", "request_mirror_policies",
        "include_request_attempt_count", "include_attempt_count_in_response", "cors",
        "per_request_buffer_limit_bytes", "retry_policy_typed_config",
    },
    "HTTP_ROUTE": _HEADERS
    | {"match", "route", "redirect", "direct_response", "stat_prefix", "decorator"},
    _MANAGER_TYPE: frozenset(
        {"access_log", "access_log_options", "common_http_protocol_options", "stat_prefix"}
    ),
}  # fmt: skip
_CONTEXTS = {
    "SIDECAR_INBOUND": "what servers receive is not patched",
    "GATEWAY": "it is for gateways",
    "WAYPOINT": "it is for waypoints",
}
_ELSEWHERE = {
    "LISTENER": "an SDK node listens to nothing",
    "FILTER_CHAIN": "an SDK node has no filter chains",
    "LISTENER_FILTER": "an SDK node has no listener filters",
    "EXTENSION_CONFIG": "an SDK node takes no extensions",
    "BOOTSTRAP": "an SDK node has no Envoy to start",
}


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """One patch with what of its value an SDK node honours; `value` None: nothing of it."""

    path: str
    apply_to: str
    operation: str
    match: ObjectMatch
    value: Any
    applies: bool
    unhonoured: tuple[str, ...]
    """Why nothing of it applies, or which fields do not."""


@lru_cache(maxsize=1024)
def patches(resource: Resource) -> tuple[Patch, ...]:
    """The patches of a document for SDK nodes."""
    spec: EnvoyFilterSpec = resource.typed
    return tuple(
        _patch(f"spec.configPatches[{index}]", patch)
        for index, patch in enumerate(spec.config_patches)
    )


def _patch(path: str, asked: ConfigPatch) -> Patch:
    operation = asked.patch.operation
    why = _refused(asked)
    value: Any = None
    unhonoured: list[str] = []
    if not why and asked.patch.value is not None:
        try:
            value = build(asked.apply_to, asked.patch.value)
        except ValueError as error:
            why = str(error)
        else:
            why, unhonoured = _trim(asked.apply_to, value)
    if why:
        return Patch(path, asked.apply_to, operation, asked.match, None, False, (why,))
    found = tuple(f"{name} has no meaning for SDK nodes" for name in unhonoured)
    return Patch(path, asked.apply_to, operation, asked.match, value, True, found)


def _refused(asked: ConfigPatch) -> str:
    if (why := _CONTEXTS.get(asked.match.context)) is not None:
        return f"context {asked.match.context}: {why}"
    if (why := _ELSEWHERE.get(asked.apply_to)) is not None:
        return f"applyTo {asked.apply_to}: {why}"
    chain = asked.match.listener.filter_chain if asked.match.listener else None
    if chain is not None and chain.filter is not None and chain.filter.name not in MANAGERS:
        return f"an SDK node has no network filter {chain.filter.name}"
    if asked.apply_to == "NETWORK_FILTER" and asked.patch.operation != "MERGE":
        return f"{asked.patch.operation} of a network filter: an SDK node has none but HTTP's"
    return ""


def _trim(apply_to: str, value: Any) -> tuple[str, list[str]]:
    """Takes out of a value what SDK nodes have not: why nothing is left, the fields that went."""
    if apply_to == "NETWORK_FILTER":
        return _trim_manager(value)
    if apply_to == "HTTP_FILTER":
        kind = value.typed_config.TypeName()
        if value.HasField("typed_config") and kind not in HTTP_FILTERS:
            return f"SDK nodes have no HTTP filter {kind}", []
        return "", []
    gone = _drop(value, _HONOURED[apply_to])
    gone += [f"typed_per_filter_config of {name}" for name in _drop_per_filter(value)]
    return "" if value.ListFields() else f"{', '.join(gone)}: no meaning for SDK nodes", gone


def _trim_manager(value: Any) -> tuple[str, list[str]]:
    kind = value.typed_config.TypeName()
    if kind != _MANAGER_TYPE:
        return f"SDK nodes have no network filter {kind or value.name}", []
    manager = hcm_pb2.HttpConnectionManager()
    value.typed_config.Unpack(manager)
    gone = _drop(manager, _HONOURED[kind])
    if not manager.ListFields():
        return f"{', '.join(gone)}: no meaning for SDK nodes", gone
    value.typed_config.Pack(manager, deterministic=True)
    return "", gone


def _drop(message: Any, honoured: frozenset[str]) -> list[str]:
    gone = [field.name for field, _ in message.ListFields() if field.name not in honoured]
    for name in gone:
        message.ClearField(name)
    return gone


def _drop_per_filter(message: Any) -> list[str]:
    configs = getattr(message, "typed_per_filter_config", {})
    gone = [name for name, config in configs.items() if config.TypeName() not in HTTP_FILTERS]
    for name in gone:
        del configs[name]
    return sorted(gone)


def order(resources: list[Resource], root: str) -> tuple[Resource, ...]:
    """EnvoyFilters as they are applied: by priority, the root namespace's first, then by age."""

    def key(resource: Resource) -> tuple[Any, ...]:
        return (resource.typed.priority, resource.namespace != root, *resource.age_key)

    return tuple(sorted(resources, key=key))


def is_empty(match: ObjectMatch) -> bool:
    """Whether a match names no kind of object."""
    parts = (match.listener, match.route_configuration, match.cluster, match.waypoint)
    return all(part is None for part in parts)
