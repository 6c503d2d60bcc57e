"""Connections whose bytes nobody can read: https of the application's own, gRPC with its own
credentials, TCP. No rule about requests can apply to them: what counts is which cluster. Pure.

A control plane of the by-name dialect says that with the route that takes everything, the last one
of the listener: it stands for the `tls` and `tcp` routes of a VirtualService.
"""

from __future__ import annotations

import bisect
import itertools

from meshsdk.balancing import ClusterView
from meshsdk.call import Decision, Forward, MethodTable, Passthrough, Reply, Request
from meshsdk.errors import (
    Blocked,
    CallError,
    ClusterNotFound,
    ListenerNotFound,
    NoRoute,
    UnusableRoute,
)
from meshsdk.matching import PathKind, PathMatch
from meshsdk.model import (
    ClusterKind,
    DirectResponseAction,
    ForwardAction,
    ListenerView,
    Route,
    RouteMatch,
)
from meshsdk.routing import Random


def decide_connection(view: ListenerView, authority: str, random: Random) -> ClusterView | None:
    """The cluster that takes a connection; None: the caller goes where it was going.

    Args:
        authority: `host:port` or `host`.
        random: uniform numbers in [0, 1): one is drawn where there are weights.

    Raises:
        CallError: there is no such cluster; says why.
    """
    if view.passthrough:
        return None
    action = _action(view, authority)
    clusters = action.clusters
    chosen = clusters[0]
    if len(clusters) > 1:
        bounds = list(itertools.accumulate(entry.weight for entry in clusters))
        chosen = clusters[bisect.bisect(bounds, int(random() * bounds[-1]))]
    found: ClusterView | None = view.clusters.get(chosen.cluster)
    if found is None:
        missing = f"cluster {chosen.cluster} of {authority} does not exist"
        raise ClusterNotFound(missing, cluster=chosen.cluster)
    return None if found.cluster.kind is ClusterKind.ORIGINAL_DST else found


def _action(view: ListenerView, authority: str) -> ForwardAction:
    if view.absent or view.route_config is None:
        raise ListenerNotFound(view.absent or f"{view.name} has no routes")
    host = view.route_config.virtual_host(authority)
    if host is None or not host.routes:
        raise NoRoute(f"no virtual host for {authority} in {view.name}")
    route = host.routes[-1]
    if isinstance(route.action, DirectResponseAction):
        raise Blocked(f"{authority} is not in the registry, and only registered hosts are allowed")
    if not isinstance(route.action, ForwardAction):
        problem = f"route {route.name!r} cannot apply to a connection to {authority}"
        raise UnusableRoute(problem, route=route.name)
    return route.action


def compile_opaque(view: ListenerView, authority: str, path: str) -> MethodTable:
    """`call.compile_method` for a gRPC method whose calls nobody on the way could read."""
    request = Request("POST", path, authority=authority, grpc=True)
    ready = {
        made: Forward(_ROUTE, made, path, authority)
        for made in view.clusters.values()
        if isinstance(made, ClusterView)
    }

    def decide(request: Request, random: Random) -> Decision:
        try:
            cluster = decide_connection(view, authority, random)
        except CallError as error:
            return Reply.of(error)
        return Passthrough() if cluster is None else ready[cluster]

    static = None
    if len(ready) == 1:
        only = decide(request, lambda: 0.0)
        static = only if isinstance(only, Forward) else None
    return MethodTable(view, request, static, decide, needs_request=False)


_ROUTE = Route("", RouteMatch(PathMatch(PathKind.PREFIX, "/")), ForwardAction(()))
