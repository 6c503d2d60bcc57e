"""Joins LDS → RDS → CDS → EDS into the views that calls use. Pure; only the xDS thread calls it.

    resolver = Resolver(machine.resource, naming, pool.view, node_id)
    result = resolver.want(clients={...}, servers={...})      # what the process needs now
    result = resolver.update(received.changed)                # what the machine reported

After each of the two the driver passes `result.subscriptions` to `machine.subscribe`, type by
type, and where `result.changed` publishes `result.listeners` and `result.server_listeners`.

A view is published only when every cluster that its routes name has arrived: it is there with its
endpoints, or it is known not to exist. Endpoints come from EDS, from the cluster itself, or by
resolving host names (`dns`); those of some kinds depend on the host that the view is for. Until
then the listener keeps its previous view, and what
that view uses stays subscribed and is kept up to date (make before break). The work of an update
is proportional to what changed: indexes lead from a resource to what is made of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from meshsdk.formats import CALLER, Caller
from meshsdk.model import Listener, ListenerView, RouteConfiguration
from meshsdk.xds.clusters import Clusters, Index, Lookup, MakeClusterView
from meshsdk.xds.dns import DNS, Name
from meshsdk.xds.naming import Naming
from meshsdk.xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE


@dataclass(frozen=True, slots=True)
class Resolution:
    """What the resolver wants and what is ready.

    Attributes:
        subscriptions: the full name set of each type whose set changed, in the order in which to
            subscribe. Pass each to `AdsMachine.subscribe`.
        listeners: the views by name, all of them; unchanged ones are the identical object.
        server_listeners: server listeners by name.
        changed: whether `listeners` or `server_listeners` differ from the previous result.
        clusters: keys of all clusters in use, when that set shrank (for `ClusterPool.retain`);
            else None.
        names: the host names to resolve, all of them, when that set changed; else None.
        warnings: one line each, for the log.
    """

    subscriptions: Mapping[str, frozenset[str]]
    listeners: Mapping[str, ListenerView]
    server_listeners: Mapping[str, Listener]
    changed: bool
    clusters: frozenset[str] | None = None
    names: frozenset[Name] | None = None
    warnings: tuple[str, ...] = ()


_NONE: frozenset[Any] = frozenset()


class _View:
    """One client listener: the view that calls see now, what it uses, and what is needed for it
    and its successor."""

    __slots__ = (
        "clusters",
        "complaint",
        "name",
        "places",
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
        self.places: frozenset[Name] = _NONE
        self.complaint = ""


class Resolver:
    """The join. Only the xDS thread may call it.

    Args:
        lookup: reads the cache.
        naming: the dialect.
        make_cluster_view: builds the `ClusterView` of a cluster and its endpoints.
        node_id: named in every error text.
        caller: the process, of which header values and hash policies may speak.
    """

    def __init__(
        self,
        lookup: Lookup,
        naming: Naming,
        make_cluster_view: MakeClusterView,
        node_id: str,
        caller: Caller = CALLER,
    ) -> None:
        self._caller = caller
        self._lookup = lookup
        self._naming = naming
        self._node_id = node_id
        self._views: dict[str, _View] = {}
        self._servers: frozenset[str] = _NONE
        self._clusters = Clusters(lookup, make_cluster_view)
        self._index = {LISTENER: Index(), ROUTE: Index()}  # name → views
        self._listeners: Mapping[str, ListenerView] = {}
        self._server_listeners: Mapping[str, Listener] = {}
        self._republished: set[str] = set()
        self._servers_changed = False
        self._warnings: list[str] = []

    def want(self, *, clients: Collection[str], servers: Collection[str] = ()) -> Resolution:
        """Set the listeners that the process needs, by view name and by server listener name."""
        lds, names = self._index[LISTENER], frozenset(clients)
        for name in self._views.keys() - names:
            view = self._views.pop(name)
            lds.move(name, frozenset({view.resource}), _NONE)
            self._need(view, _NONE, _NONE)
            if view.published is not None:
                self._republished.add(name)
        for name in sorted(names - self._views.keys()):
            view = self._views[name] = _View(name, self._naming.listener_resource(name))
            lds.move(name, _NONE, frozenset({view.resource}))
            self._refresh_view(view)
        lds.move(_SERVER, self._servers, frozenset(servers))
        self._servers = frozenset(servers)
        self._refresh_servers()
        return self._result()

    def update(self, changed: Collection[tuple[str, Any]]) -> Resolution:
        """Take in what changed in the cache: (type_url, name) pairs, (`DNS`, `Name`) too."""
        views: set[str] = set()
        clusters: set[str] = set()
        for url, name in changed:
            if url in self._index:
                views.update(self._index[url].of(name))
            else:
                clusters.update(self._clusters.update(url, name))
                views.update(self._clusters.places.of(name))
        for name in clusters:
            if self._clusters.refresh(name):
                views.update(self._clusters.users.of(name))
        if _SERVER in views:
            views.discard(_SERVER)
            self._refresh_servers()
        for name in sorted(views):
            self._refresh_view(self._views[name])
        return self._result()

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
        wanted = self._reach(view, view.used_route | route, config.cluster_names)
        if not all(self._clusters.arrived(name, view.name) for name in wanted):
            self._renew(view)
            return
        self._need(view, route, wanted)
        clusters = self._clusters.views(wanted, view.name)
        new = ListenerView(
            view.name,
            config,
            clusters,
            listener.fault,
            listener.max_stream_duration,
            filters=listener.filters,
            caller=self._caller,
            access_logs=listener.access_logs,
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
        newest = self._clusters.views(view.used_clusters, view.name)
        clusters = {**known.clusters, **newest}
        if clusters != known.clusters:
            new = replace(known, clusters=clusters)
            self._publish(view, new, view.used_route, view.used_clusters)

    def _publish(
        self, view: _View, new: ListenerView, route: frozenset[str], clusters: frozenset[str]
    ) -> None:
        view.published, view.used_route, view.used_clusters = new, route, clusters
        view.complaint = ""
        self._republished.add(view.name)

    def _publish_absent(self, view: _View, why: str, route: frozenset[str] = _NONE) -> None:
        self._need(view, route, _NONE)
        absent = f"{why} (node ID: {self._node_id})"
        if view.published is None or view.published.absent != absent:
            self._warn(f"listener {view.name} cannot be used: {why}")
            self._publish(view, ListenerView(view.name, absent=absent), _NONE, _NONE)

    def _need(self, view: _View, route: frozenset[str], clusters: frozenset[str]) -> None:
        """Set what a view uses or prepares to use; forget what nobody uses any more."""
        if route != view.route or clusters != view.clusters:
            self._index[ROUTE].move(view.name, view.route, route)
            self._clusters.need(view.name, view.clusters, clusters)
            view.route, view.clusters = route, clusters
            self._name(view)

    def _name(self, view: _View) -> None:
        """Need the host names that the clusters of a view depend on."""
        places = self._clusters.names(view.clusters, view.name)
        if places or view.places:
            self._clusters.places.move(view.name, view.places, places)
            view.places = places

    def _reach(self, view: _View, route: frozenset[str], wanted: frozenset[str]) -> frozenset[str]:
        """Need these clusters with all that they are made of; returns them all."""
        while True:
            self._need(view, route, view.used_clusters | wanted)
            complete = self._clusters.with_members(wanted)
            if complete is wanted or complete == wanted:
                self._name(view)  # a cluster may have become one of another kind
                return wanted
            wanted = complete

    def _refresh_servers(self) -> None:
        states = {name: self._lookup(LISTENER, name) for name in self._servers}
        found = {name: state.value for name, state in states.items() if state and state.value}
        if found != self._server_listeners:
            self._server_listeners = found
            self._servers_changed = True

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
        clusters = self._clusters
        subscriptions = {}
        shrunk = False
        eds, dns = clusters.sources[ENDPOINT], clusters.sources[DNS]
        for url, index in {**self._index, CLUSTER: clusters.users, ENDPOINT: eds}.items():
            changed, gone = index.taken()
            if changed:
                subscriptions[url] = frozenset(index.users)
            shrunk = shrunk or (gone and url == CLUSTER)
        changes = dns.taken(), clusters.places.taken()
        names = None
        if any(changed for changed, _ in changes):
            names = frozenset(dns.users).union(clusters.places.users)
        dirty = self._servers_changed or bool(self._republished)
        self._servers_changed = False
        if self._republished:
            self._listeners = self._shown(self._republished)
            self._republished = set()
        warnings, self._warnings = tuple(self._warnings), []
        return Resolution(
            subscriptions,
            self._listeners,
            self._server_listeners,
            dirty,
            clusters.keys(self._listeners.values()) if shrunk or changes[1][1] else None,
            names,
            warnings,
        )

    def _shown(self, republished: set[str]) -> dict[str, ListenerView]:
        """All views; copied, because a snapshot holds the last ones, and not made anew, because
        one change in a mesh of a thousand services is to cost what one change is worth."""
        listeners = dict(self._listeners)
        for name in republished:
            view = self._views.get(name)
            if view is None or view.published is None:
                listeners.pop(name, None)
            else:
                listeners[name] = view.published
        return listeners


_SERVER = ""
"""The user of the LDS index that stands for all server listeners; no view has an empty name."""


def _same(one: ListenerView, other: ListenerView) -> bool:
    return (
        one.route_config is other.route_config
        and one.fault == other.fault
        and one.max_stream_duration == other.max_stream_duration
        and one.filters == other.filters
        and one.access_logs == other.access_logs
        and one.clusters == other.clusters
    )
