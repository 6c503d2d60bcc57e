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
        if old == new:
            return
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
_Sources = tuple[frozenset[str], frozenset[Name]]
"""What endpoints come from: EDS resources, and host names."""
_NO_SOURCES: _Sources = (_NONE, _NONE)


class _Node:
    """One cluster: configuration and endpoints that are in use, None while or where missing."""

    __slots__ = ("arrived", "assignment", "cluster", "sources", "view")

    def __init__(self) -> None:
        self.arrived = False
        self.cluster: Cluster | None = None
        self.assignment: Assignment | None = None
        self.view: Any = None
        self.sources = _NO_SOURCES


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
        if old == new:
            return
        self.users.move(view, old, new)
        for name in new - old:
            if name not in self._nodes:
                node = self._nodes[name] = _Node()
                self._refresh(name, node)
        for name in old - new:
            if name not in self.users.users:
                self._need_sources(name, self._nodes.pop(name), _NO_SOURCES)

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
            self._need_sources(name, node, _NO_SOURCES)
            node.arrived, node.cluster, node.assignment, node.view = True, None, None, None
            return
        needed = _sources_of(newest)
        ready = self._have_arrived(needed)
        in_use = newest if ready or node.cluster is None else node.cluster
        if in_use is not newest:
            # A cluster that changed over to other endpoints goes on with the old ones until the
            # new ones are there, as a warming cluster in Envoy.
            old = _sources_of(in_use)
            needed = needed[0] | old[0], needed[1] | old[1]
        self._need_sources(name, node, needed)
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
            state = self._lookup(ENDPOINT, cluster.eds_name or cluster.name)
            found: Assignment | None = None if state is None else state.value
            return found
        if cluster.kind in (ClusterKind.STRICT_DNS, ClusterKind.LOGICAL_DNS):
            return resolved(cluster, self._resolved)
        return None

    def _resolved(self, name: Name) -> Any:
        return self._lookup(DNS, name)

    def _need_sources(self, name: str, node: _Node, sources: _Sources) -> None:
        if sources != node.sources:
            self.sources[ENDPOINT].move(name, node.sources[0], sources[0])
            self.sources[DNS].move(name, node.sources[1], sources[1])
            node.sources = sources

    def _have_arrived(self, sources: _Sources) -> bool:
        for url, names in zip((ENDPOINT, DNS), sources, strict=True):
            for name in names:
                if not self._arrived(url, name):
                    return False
        return True

    def _arrived(self, url: str, name: Any) -> bool:
        state = self._lookup(url, name)
        return state is not None and state.arrived

    # --- as one view sees them -----------------------------------------------------------------

    def with_members(self, names: frozenset[str]) -> frozenset[str]:
        """These clusters and the members of the aggregates among them."""
        members: list[str] = []
        for name in names:
            cluster = self._nodes[name].cluster
            if cluster is not None and cluster.members:
                members += cluster.members
        return names.union(members) if members else names

    def names(self, clusters: frozenset[str], called: str) -> frozenset[Name]:
        """The host names that these clusters depend on for calls to `called` (`host:port`)."""
        found = _NONE
        for name in clusters:
            place = self._place(self._nodes[name].cluster, called)
            if place is not None:
                found |= {place}
        return found

    def _place(self, cluster: Cluster | None, called: str) -> Name | None:
        if cluster is None or cluster.kind not in PLACED or _untouched(cluster):
            return None
        return name_of_place(cluster, called)

    def arrived(self, name: str, called: str) -> bool:
        """Whether there is nothing more to wait for: it is there, or is known not to be."""
        node = self._nodes[name]
        if not node.arrived:
            return False
        place = self._place(node.cluster, called)
        return place is None or self._arrived(DNS, place)

    def views(self, names: Iterable[str], called: str) -> dict[str, Any]:
        """The cluster views for calls to `called`; those that do not exist are left out."""
        found = {}
        for name in sorted(names):
            made = self._view(name, called)
            if made is not None:
                found[name] = made
        return found

    def _view(self, name: str, called: str) -> Any:
        node = self._nodes[name]
        cluster = node.cluster
        if cluster is None or node.view is not None:
            return node.view
        if cluster.kind is ClusterKind.AGGREGATE:
            leaves = (self._view(leaf, called) for leaf in self._leaves(name))
            return self._make(cluster, None, tuple(leaf for leaf in leaves if leaf is not None))
        return self._make(*at_place(cluster, called, self._resolved))

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


def _sources_of(cluster: Cluster) -> _Sources:
    if cluster.kind is ClusterKind.EDS:
        return frozenset((cluster.eds_name or cluster.name,)), _NONE
    return _NONE, names_of(cluster)
