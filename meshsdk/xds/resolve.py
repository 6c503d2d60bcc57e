"""Joins LDS → RDS → CDS → EDS into the views that calls use. Pure; only the xDS thread calls it.

    resolver = Resolver(machine.resource, naming, pool.view, node_id)
    result = resolver.want(clients={...}, servers={...})      # what the process needs now
    result = resolver.update(received.changed)                # what the machine reported

After each of the two the driver passes `result.subscriptions` to `machine.subscribe`, type by
type, and where `result.changed` publishes `result.listeners` and `result.server_listeners`.

A view is published only when every cluster that its routes name has arrived: it is there with its
endpoints, or it is known not to exist. Until then the listener keeps its previous view, and what
that view uses stays subscribed and is kept up to date (make before break). The work of an update
is proportional to what changed: four indexes lead from a resource to what is made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from meshsdk.model import (
    Assignment,
    Cluster,
    ClusterKind,
    Listener,
    ListenerView,
    RouteConfiguration,
)
from meshsdk.xds.naming import Naming
from meshsdk.xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, ResourceState

Lookup = Callable[[str, str], ResourceState | None]
"""(type_url, name) → what the cache knows: `AdsMachine.resource`."""

MakeClusterView = Callable[[Cluster, Assignment | None], Any]
"""`balancing.ClusterPool.view`."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What the resolver wants and what is ready.

    Attributes:
        subscriptions: the full name set of each type whose set changed, in the order in which to
            subscribe. Pass each to `AdsMachine.subscribe`.
        listeners: the views by name, all of them; unchanged ones are the identical object.
        server_listeners: server listeners by name.
        changed: whether `listeners` or `server_listeners` differ from the previous result.
        clusters: names of all clusters in use, when that set shrank (for `ClusterPool.retain`);
            else None.
        warnings: one line each, for the log.
    """

    subscriptions: Mapping[str, frozenset[str]]
    listeners: Mapping[str, ListenerView]
    server_listeners: Mapping[str, Listener]
    changed: bool
    clusters: frozenset[str] | None = None
    warnings: tuple[str, ...] = ()


_NONE: frozenset[str] = frozenset()


class _View:
    """One client listener: the view that calls see now, what it uses, and what is needed for it
    and its successor."""

    __slots__ = (
        "clusters",
        "complaint",
        "name",
        "published",
        "resource",
        "route",
        "used_clusters",
        "used_route",
    )

    def __init__(self, name: str, resource: str) -> None:
        self.name = name
        self.resource = resource
        self.published: ListenerView | None = None
        self.used_route: frozenset[str] = _NONE
        self.used_clusters: frozenset[str] = _NONE
        self.route: frozenset[str] = _NONE
        self.clusters: frozenset[str] = _NONE
        self.complaint = ""


class _Cluster:
    """One cluster: configuration and endpoints that are in use, None while or where missing."""

    __slots__ = ("arrived", "assignment", "cluster", "endpoints", "view")

    def __init__(self) -> None:
        self.arrived = False
        self.cluster: Cluster | None = None
        self.assignment: Assignment | None = None
        self.view: Any = None
        self.endpoints: frozenset[str] = frozenset()


class _Index:
    """Which users need a resource: the keys are what to subscribe to."""

    __slots__ = ("changed", "shrunk", "users")

    def __init__(self) -> None:
        self.users: dict[str, set[str]] = {}
        self.changed = False
        self.shrunk = False

    def move(self, user: str, old: frozenset[str], new: frozenset[str]) -> None:
        """The user needed `old` and needs `new` now."""
        for name in new - old:
            if name not in self.users:
                self.users[name] = set()
                self.changed = True
            self.users[name].add(user)
        for name in old - new:
            users = self.users[name]
            users.discard(user)
            if not users:
                del self.users[name]
                self.changed = self.shrunk = True

    def of(self, name: str) -> Collection[str]:
        return self.users.get(name, ())


class Resolver:
    """The join. Only the xDS thread may call it.

    Args:
        lookup: reads the cache.
        naming: the dialect.
        make_cluster_view: builds the `ClusterView` of a cluster and its endpoints.
        node_id: named in every error text.
    """

    def __init__(
        self, lookup: Lookup, naming: Naming, make_cluster_view: MakeClusterView, node_id: str
    ) -> None:
        self._lookup = lookup
        self._naming = naming
        self._make = make_cluster_view
        self._node_id = node_id
        self._views: dict[str, _View] = {}
        self._servers: frozenset[str] = _NONE
        self._clusters: dict[str, _Cluster] = {}
        # LDS, RDS, CDS name → views; EDS name → clusters.
        self._index = {url: _Index() for url in (LISTENER, ROUTE, CLUSTER, ENDPOINT)}
        self._listeners: Mapping[str, ListenerView] = {}
        self._server_listeners: Mapping[str, Listener] = {}
        self._dirty = False
        self._warnings: list[str] = []

    def want(self, *, clients: Collection[str], servers: Collection[str] = ()) -> Resolution:
        """Set the listeners that the process needs, by view name and by server listener name."""
        lds, names = self._index[LISTENER], frozenset(clients)
        for name in self._views.keys() - names:
            view = self._views.pop(name)
            lds.move(name, frozenset({view.resource}), _NONE)
            self._need(view, _NONE, _NONE)
            self._dirty = self._dirty or view.published is not None
        for name in sorted(names - self._views.keys()):
            view = self._views[name] = _View(name, self._naming.listener_resource(name))
            lds.move(name, _NONE, frozenset({view.resource}))
            self._refresh_view(view)
        lds.move(_SERVER, self._servers, frozenset(servers))
        self._servers = frozenset(servers)
        self._refresh_servers()
        return self._result()

    def update(self, changed: Collection[tuple[str, str]]) -> Resolution:
        """Take in what changed in the cache: (type_url, name) pairs."""
        views: set[str] = set()
        clusters: set[str] = set()
        for url, name in changed:
            if url == ENDPOINT:
                clusters.update(self._index[url].of(name))
            elif url == CLUSTER and name in self._clusters:
                clusters.add(name)
            elif url != CLUSTER:
                views.update(self._index[url].of(name))
        for name in clusters:
            if self._refresh_cluster(name, self._clusters[name]):
                views.update(self._index[CLUSTER].of(name))
        if _SERVER in views:
            views.discard(_SERVER)
            self._refresh_servers()
        for name in sorted(views):
            self._refresh_view(self._views[name])
        return self._result()

    # --- clusters ------------------------------------------------------------------------------

    def _refresh_cluster(self, name: str, node: _Cluster) -> bool:
        """Bring a cluster up to date with the cache; whether what calls see of it changed."""
        arrived, view = node.arrived, node.view
        state = self._lookup(CLUSTER, name)
        if state is not None and state.arrived:
            self._take_cluster(name, node, state.value)
        return node.arrived is not arrived or node.view is not view

    def _take_cluster(self, name: str, node: _Cluster, newest: Cluster | None) -> None:
        if newest is None:
            self._need_endpoints(name, node, _NONE)
            node.arrived, node.cluster, node.assignment, node.view = True, None, None, None
            return
        needed = _endpoints_of(newest)
        ready = all(self._arrived(ENDPOINT, resource) for resource in needed)
        in_use = newest if ready or node.cluster is None else node.cluster
        # A cluster that changed over to other endpoints goes on with the old ones until the new
        # ones are there, as a warming cluster in Envoy.
        self._need_endpoints(name, node, needed | _endpoints_of(in_use))
        if not ready and node.cluster is None:
            node.arrived = False  # it may have been known not to exist
            return
        states = [self._lookup(ENDPOINT, resource) for resource in _endpoints_of(in_use)]
        assignment: Assignment | None = next((s.value for s in states if s is not None), None)
        if node.view is None or in_use is not node.cluster or assignment is not node.assignment:
            node.view = self._make(in_use, assignment)
        node.arrived, node.cluster, node.assignment = True, in_use, assignment

    def _need_endpoints(self, name: str, node: _Cluster, names: frozenset[str]) -> None:
        self._index[ENDPOINT].move(name, node.endpoints, names)
        node.endpoints = names

    def _arrived(self, url: str, name: str) -> bool:
        state = self._lookup(url, name)
        return state is not None and state.arrived

    # --- views ---------------------------------------------------------------------------------

    def _refresh_view(self, view: _View) -> None:
        """Bring a view up to date with the cache, or its present one as far as that goes."""
        state = self._lookup(LISTENER, view.resource)
        if state is None or not state.arrived:
            return
        if state.value is None:
            self._publish_absent(view, state.why_missing)
        elif state.value.address:
            self._publish_absent(view, f"Listener {view.resource} is a listener of a server")
        elif state.value.route_config is not None:
            self._offer(view, state.value, state.value.route_config, _NONE)
        else:
            self._offer_by_name(view, state.value)

    def _offer_by_name(self, view: _View, listener: Listener) -> None:
        name = self._naming.route_resource(view.name, listener)
        route = frozenset({name})
        state = self._lookup(ROUTE, name)
        if state is not None and state.value is not None:
            self._offer(view, listener, state.value, route)
        elif state is None or not state.arrived:
            self._keep(view, route)
        elif not view.used_route and not view.used_clusters:
            self._publish_absent(view, state.why_missing, route)
        else:
            # A listener that points to nothing: the last good routes are better than none.
            complaint = f"{state.why_missing}; listener {view.name} keeps its previous routes"
            if complaint != view.complaint:
                view.complaint = complaint
                self._warn(complaint)
            self._keep(view, route)

    def _offer(
        self, view: _View, listener: Listener, config: RouteConfiguration, route: frozenset[str]
    ) -> None:
        """Publish the view of these routes if all is there, else prepare for it."""
        wanted = config.cluster_names
        self._need(view, view.used_route | route, view.used_clusters | wanted)
        found = {name: self._clusters[name] for name in sorted(wanted)}
        if not all(node.arrived for node in found.values()):
            self._renew(view)
            return
        self._need(view, route, wanted)
        clusters = {name: node.view for name, node in found.items() if node.view is not None}
        new = ListenerView(
            view.name, config, clusters, listener.fault, listener.max_stream_duration
        )
        if view.published is None or not _same(view.published, new):
            self._warn_of_missing(view, wanted - clusters.keys())
            self._publish(view, new, route, wanted)

    def _keep(self, view: _View, route: frozenset[str]) -> None:
        """Go on with the present view while waiting for a route configuration."""
        self._need(view, view.used_route | route, view.used_clusters)
        self._renew(view)

    def _renew(self, view: _View) -> None:
        """Take up what changed in the clusters of the present view, whose successor is not ready.

        A cluster that is gone stays here: it goes with the routes that name it.
        """
        known = view.published
        if known is None:
            return
        clusters = dict(known.clusters)
        for name in view.used_clusters:
            if self._clusters[name].view is not None:
                clusters[name] = self._clusters[name].view
        if clusters != known.clusters:
            new = replace(known, clusters=clusters)
            self._publish(view, new, view.used_route, view.used_clusters)

    def _publish(
        self, view: _View, new: ListenerView, route: frozenset[str], clusters: frozenset[str]
    ) -> None:
        view.published, view.used_route, view.used_clusters = new, route, clusters
        view.complaint = ""
        self._dirty = True

    def _publish_absent(self, view: _View, why: str, route: frozenset[str] = _NONE) -> None:
        self._need(view, route, _NONE)
        absent = f"{why} (node ID: {self._node_id})"
        if view.published is None or view.published.absent != absent:
            self._warn(f"listener {view.name} cannot be used: {why}")
            self._publish(view, ListenerView(view.name, absent=absent), _NONE, _NONE)

    def _need(self, view: _View, route: frozenset[str], clusters: frozenset[str]) -> None:
        """Set what a view uses or prepares to use; forget what nobody uses any more."""
        self._index[ROUTE].move(view.name, view.route, route)
        self._index[CLUSTER].move(view.name, view.clusters, clusters)
        for name in clusters - view.clusters:
            if name not in self._clusters:
                node = self._clusters[name] = _Cluster()
                self._refresh_cluster(name, node)
        for name in view.clusters - clusters:
            if name not in self._index[CLUSTER].users:
                self._need_endpoints(name, self._clusters.pop(name), _NONE)
        view.route, view.clusters = route, clusters

    def _refresh_servers(self) -> None:
        states = {name: self._lookup(LISTENER, name) for name in self._servers}
        found = {name: state.value for name, state in states.items() if state and state.value}
        if found != self._server_listeners:
            self._server_listeners = found
            self._dirty = True

    # --- result --------------------------------------------------------------------------------

    def _warn_of_missing(self, view: _View, names: frozenset[str]) -> None:
        """Say which clusters a view is published without, those that were missing before aside."""
        known = view.published
        for name in sorted(names):
            if known is not None and name in view.used_clusters - known.clusters.keys():
                continue
            state = self._lookup(CLUSTER, name)
            why = state.why_missing if state is not None else f"Cluster {name} does not exist"
            self._warn(f"{why}; listener {view.name} routes to it, those calls fail with 503")

    def _warn(self, text: str) -> None:
        self._warnings.append(f"{text} (node ID: {self._node_id})")

    def _result(self) -> Resolution:
        subscriptions = {}
        shrunk = self._index[CLUSTER].shrunk
        for url, index in self._index.items():
            if index.changed:
                subscriptions[url] = frozenset(index.users)
            index.changed = index.shrunk = False
        dirty, self._dirty = self._dirty, False
        if dirty:
            views = self._views.values()
            self._listeners = {v.name: v.published for v in views if v.published is not None}
        warnings, self._warnings = tuple(self._warnings), []
        clusters = frozenset(self._clusters) if shrunk else None
        return Resolution(
            subscriptions, self._listeners, self._server_listeners, dirty, clusters, warnings
        )


_SERVER = ""
"""The user of the LDS index that stands for all server listeners; no view has an empty name."""


def _endpoints_of(cluster: Cluster) -> frozenset[str]:
    """The EDS resource of a cluster."""
    if cluster.kind is not ClusterKind.EDS:
        return _NONE
    return frozenset({cluster.eds_name or cluster.name})


def _same(one: ListenerView, other: ListenerView) -> bool:
    return (
        one.route_config is other.route_config
        and one.fault == other.fault
        and one.max_stream_duration == other.max_stream_duration
        and one.clusters == other.clusters
    )
