"""The one door to translation: a resource of a type and a name, for a kind of node.

`make` serves the xDS server; `listener`, `route`, `cluster`, `endpoints` and `everything` serve
whoever wants to look at what a node would get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from google.protobuf.message import Message

from controlplane.translate import proxyless
from controlplane.translate.node import Dialect, Node, Variant
from controlplane.translate.relevance import relevant
from controlplane.translate.scope import Scope
from controlplane.translate.wire import TYPE_PREFIX
from controlplane.world import World

LDS = TYPE_PREFIX + "envoy.config.listener.v3.Listener"
RDS = TYPE_PREFIX + "envoy.config.route.v3.RouteConfiguration"
CDS = TYPE_PREFIX + "envoy.config.cluster.v3.Cluster"
EDS = TYPE_PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"

_Builder = Callable[[Scope, str], Message | None]
_PROXYLESS: dict[str, _Builder] = {
    LDS: proxyless.listener,
    RDS: proxyless.route,
    CDS: proxyless.cluster,
    EDS: proxyless.endpoints,
}
_DIALECTS: dict[Dialect, dict[str, _Builder]] = {
    Dialect.SDK: _PROXYLESS,
    Dialect.GRPC: _PROXYLESS,
    Dialect.ENVOY: {},  # the seam of the sidecar dialect
}


class Made(NamedTuple):
    """A resource, what it was made from, and what the node could not be told."""

    message: Message | None
    """None: no such resource for this node."""
    hosts: frozenset[str]
    """Hosts that were looked at: it changes with them only."""
    notes: tuple[str, ...]
    left_out: tuple[str, ...]
    """Rules that this node never gets, and why."""
    missed: bool
    """A name was not found, so it may also change with hosts that have other names."""


def make(world: World, variant: Variant, type_url: str, name: str) -> Made:
    """The resource of one type and name for one kind of node. Pure."""
    builder = _DIALECTS[variant.dialect].get(type_url)
    scope = Scope(world, variant)
    message = builder(scope, name) if builder else None
    notes, left_out = tuple(scope.notes), tuple(scope.left_out)
    return Made(message, frozenset(scope.hosts), notes, left_out, scope.missed)


def names(world: World, variant: Variant, type_url: str) -> list[str]:
    """Every name of a type that can be listed (LDS, CDS), for wildcard subscriptions."""
    if variant.dialect is Dialect.ENVOY:
        return []
    scope = Scope(world, variant)
    if type_url == LDS:
        return proxyless.listener_names(scope)
    return proxyless.cluster_names(scope) if type_url == CDS else []


def listener(world: World, node: Node, name: str) -> listener_pb2.Listener | None:
    """The listener `host:port` as this node gets it; None when it gets none."""
    return _one(world, node, LDS, name)


def route(world: World, node: Node, name: str) -> route_pb2.RouteConfiguration | None:
    """The route configuration `outbound|port||host` as this node gets it."""
    return _one(world, node, RDS, name)


def cluster(world: World, node: Node, name: str) -> cluster_pb2.Cluster | None:
    """The cluster `outbound|port|subset|host` as this node gets it."""
    return _one(world, node, CDS, name)


def endpoints(world: World, node: Node, name: str) -> endpoint_pb2.ClusterLoadAssignment | None:
    """The endpoints of a cluster as this node gets them."""
    return _one(world, node, EDS, name)


def everything(world: World, node: Node) -> dict[str, list[Message]]:
    """All resources that a node may get, by type URL, in the order of their names."""
    variant = node.variant(relevant(world))
    listeners = _all(world, variant, LDS, names(world, variant, LDS))
    clusters = _all(world, variant, CDS, names(world, variant, CDS))
    scope = Scope(world, variant)
    return {
        LDS: listeners,
        RDS: _all(world, variant, RDS, proxyless.route_names(scope)),
        CDS: clusters,
        EDS: _all(world, variant, EDS, [getattr(item, "name", "") for item in clusters]),
    }


def _one(world: World, node: Node, type_url: str, name: str) -> Any:
    return make(world, node.variant(relevant(world)), type_url, name).message


def _all(world: World, variant: Variant, type_url: str, wanted: Iterable[str]) -> list[Message]:
    made = (make(world, variant, type_url, name).message for name in sorted(wanted))
    return [message for message in made if message is not None]
