"""Clusters joined with their endpoints, for `resolve`: EDS, host names, members of aggregates.

Pure; only the xDS thread calls it. A cluster has arrived when everything is there that its
endpoints come from. Two kinds have no view that all share: an aggregate is made of its members
anew whenever one of them changes, and the endpoints of ORIGINAL_DST and DYNAMIC depend on the host
that is called.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from meshsdk.model import Assignment, Cluster, ClusterKind
from meshsdk.xds.dns import DNS, PLACED, Name, at_place, name_of_place, names_of, resolved
from meshsdk.xds.naming import PASSTHROUGH_CLUSTER
from meshsdk.xds.resources import CLUSTER, ENDPOINT

Lookup = Callable[[str, Any], Any]
"""(type_url, name) → what the cache knows, `AdsMachine.resource`; for `DNS` a `dns.Resolved`."""


class MakeClusterView(Protocol):
    """`balancing.ClusterPool.view`; `members` are the views that an aggregate is made of."""

    def __call__(
        self, cluster: Cluster, assignment: Assignment | None, members: tuple[Any, ...] = ..., /
    ) -> Any: ...


class Index:
    """Which users need a resource: the keys are what to subscribe to."""

    __slots__ = ("changed", "shrunk", "users")

    def __init__(self) -> None:
        self.users: dict[Any, set[str]] = {}
        self.changed = False
        self.shrunk = False

    def move(self, user: str, old: frozenset[Any], new: frozenset[Any]) -> None:
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

    def of(self, name: Any) -> Collection[str]:
        return self.users.get(name, ())

    def taken(self) -> tuple[bool, bool]:
        """Whether it changed and whether it shrank since this was asked last."""
        found = self.changed, self.shrunk
        self.changed = self.shrunk = False
        return found


_NONE: frozenset[Any] = frozenset()
_Source = tuple[str, Any]
"""What endpoints come from: a type URL or `DNS`, and the name."""


class _Node:
    """One cluster: configuration and endpoints that are in use, None while or where missing."""

    __slots__ = ("arrived", "assignment", "cluster", "sources", "view")

    def __init__(self) -> None:
        self.arrived = False
        self.cluster: Cluster | None = None
        self.assignment: Assignment | None = None
        self.view: Any = None
        self.sources: frozenset[_Source] = _NONE


class Clusters:
    """All clusters that some listener view needs.

    Attributes:
        users: cluster name → views.
        sources: by type URL, the EDS resource or `dns.Name` → clusters.
        places: `dns.Name` → views, for clusters that depend on the host of the view.
    """

    def __init__(self, lookup: Lookup, make: MakeClusterView) -> None:
        self._lookup = lookup
        self._make = make
        self._nodes: dict[str, _Node] = {}
        self.users = Index()
        self.sources = {ENDPOINT: Index(), DNS: Index()}
        self.places = Index()

    def need(self, view: str, old: frozenset[str], new: frozenset[str]) -> None:
        """A view needed the clusters `old` and needs `new` now."""
        self.users.move(view, old, new)
        for name in new - old:
            if name not in self._nodes:
                node = self._nodes[name] = _Node()
                self._refresh(name, node)
        for name in old - new:
            if name not in self.users.users:
                self._need_sources(name, self._nodes.pop(name), _NONE)

    def update(self, url: str, name: Any) -> Collection[str]:
        """Something changed in the cache; returns the clusters that may have changed with it."""
        if url == CLUSTER:
            return (name,) if name in self._nodes else ()
        return self.sources[url].of(name)

    def refresh(self, name: str) -> bool:
        """Bring a cluster up to date with the cache; whether what calls see of it changed."""
        return self._refresh(name, self._nodes[name])

    # --- one cluster ---------------------------------------------------------------------------

    def _refresh(self, name: str, node: _Node) -> bool:
        arrived, view, cluster = node.arrived, node.view, node.cluster
        state = self._lookup(CLUSTER, name)
        if state is not None and state.arrived:
            self._take(name, node, state.value)
        before = arrived, id(view), id(cluster)
        return (node.arrived, id(node.view), id(node.cluster)) != before

    def _take(self, name: str, node: _Node, newest: Cluster | None) -> None:
        if newest is None:
            self._need_sources(name, node, _NONE)
            node.arrived, node.cluster, node.assignment, node.view = True, None, None, None
            return
        needed = _sources_of(newest)
        ready = all(self._arrived(*source) for source in needed)
        in_use = newest if ready or node.cluster is None else node.cluster
        # A cluster that changed over to other endpoints goes on with the old ones until the new
        # ones are there, as a warming cluster in Envoy.
        self._need_sources(name, node, needed | _sources_of(in_use))
        if not ready and node.cluster is None:
            node.arrived = False  # it may have been known not to exist
            return
        assignment = self._assignment(in_use)
        if in_use.kind in _OF_EACH_VIEW and not _untouched(in_use):
            node.view = None
        elif node.view is None or in_use is not node.cluster or assignment is not node.assignment:
            node.view = self._make(in_use, assignment)
        node.arrived, node.cluster, node.assignment = True, in_use, assignment

    def _assignment(self, cluster: Cluster) -> Assignment | None:
        if cluster.kind is ClusterKind.EDS:
            states = (self._lookup(*source) for source in _sources_of(cluster))
            return next((state.value for state in states if state is not None), None)
        if cluster.kind in (ClusterKind.STRICT_DNS, ClusterKind.LOGICAL_DNS):
            return resolved(cluster, self._resolved)
        return None

    def _resolved(self, name: Name) -> Any:
        return self._lookup(DNS, name)

    def _need_sources(self, name: str, node: _Node, sources: frozenset[_Source]) -> None:
        for url, index in self.sources.items():
            old, new = (
                frozenset(source for kind, source in each if kind == url)
                for each in (node.sources, sources)
            )
            index.move(name, old, new)
        node.sources = sources

    def _arrived(self, url: str, name: Any) -> bool:
        state = self._lookup(url, name)
        return state is not None and state.arrived

    # --- as one view sees them -----------------------------------------------------------------

    def with_members(self, names: frozenset[str]) -> frozenset[str]:
        """These clusters and the members of the aggregates among them."""
        known = (self._nodes[name].cluster for name in names)
        members = [member for cluster in known if cluster for member in cluster.members]
        return names.union(members) if members else names

    def place(self, name: str, host: str) -> Name | None:
        """The host name that a cluster depends on for calls to `host`."""
        cluster = self._nodes[name].cluster
        if cluster is None or cluster.kind not in PLACED or _untouched(cluster):
            return None
        return name_of_place(cluster, host)

    def arrived(self, name: str, host: str) -> bool:
        """Whether there is nothing more to wait for: it is there, or is known not to be."""
        place = self.place(name, host)
        return self._nodes[name].arrived and (place is None or self._arrived(DNS, place))

    def views(self, names: Iterable[str], host: str, port: int) -> dict[str, Any]:
        """The cluster views for calls to `host:port`; those that do not exist are left out."""
        found = {name: self._view(name, host, port) for name in sorted(names)}
        return {name: made for name, made in found.items() if made is not None}

    def _view(self, name: str, host: str, port: int) -> Any:
        node = self._nodes[name]
        cluster = node.cluster
        if cluster is None or node.view is not None:
            return node.view
        if cluster.kind is ClusterKind.AGGREGATE:
            leaves = (self._view(leaf, host, port) for leaf in self._leaves(name))
            return self._make(cluster, None, tuple(leaf for leaf in leaves if leaf is not None))
        return self._make(*at_place(cluster, host, port, self._resolved))

    def _leaves(self, name: str, depth: int = 1) -> list[str]:
        """The members of an aggregate, those of nested ones in their place; each once.

        Source: gRFC A37, which allows 16 levels.
        """
        node = self._nodes.get(name)
        if node is None or node.cluster is None or node.cluster.kind is not ClusterKind.AGGREGATE:
            return [name] if node else []
        if depth > _MAX_DEPTH:
            return []
        members = node.cluster.members
        return list(dict.fromkeys(leaf for m in members for leaf in self._leaves(m, depth + 1)))

    def keys(self, views: Iterable[Any]) -> frozenset[str]:
        """`Cluster.key` of every cluster; `views` are the published ones."""
        placed = (
            made.cluster.key
            for view in views
            for made in view.clusters.values()
            if made.cluster.place
        )
        return frozenset(self._nodes).union(placed)


_MAX_DEPTH = 16
_OF_EACH_VIEW = (*PLACED, ClusterKind.AGGREGATE)


def _untouched(cluster: Cluster) -> bool:
    """The cluster for hosts outside the registry: callers go there by themselves."""
    return cluster.name == PASSTHROUGH_CLUSTER


def _sources_of(cluster: Cluster) -> frozenset[_Source]:
    if cluster.kind is ClusterKind.EDS:
        return frozenset({(ENDPOINT, cluster.eds_name or cluster.name)})
    return frozenset((DNS, name) for name in names_of(cluster))
