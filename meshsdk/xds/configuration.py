"""The configuration as it is known: cache, resolver and the names that are wanted, in one piece.

Pure: it is told what happened, with `now`, and answers with the requests to send. Only the xDS
thread calls it.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from meshsdk.balancing import ClusterPool
from meshsdk.errors import InvalidResource
from meshsdk.model import (
    Cluster,
    ClusterKind,
    Listener,
    ListenerView,
    Locality,
    RouteConfiguration,
    Snapshot,
)
from meshsdk.xds.caller import caller_of
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.dns import DNS, Answer, Name, Names
from meshsdk.xds.interest import Interest
from meshsdk.xds.naming import Naming
from meshsdk.xds.resolve import Resolution, Resolver
from meshsdk.xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE
from meshsdk.xds.store import Saved
from meshsdk.xds.stream import AdsMachine

_log = logging.getLogger("meshsdk.xds")


class Configuration:
    """Args:
    node: `envoy.config.core.v3.Node` of this process.
    max_listeners: how many listener names are subscribed to at most.
    snapshot: what is in force until something is known.
    """

    def __init__(self, node: Any, naming: Naming, max_listeners: int, snapshot: Snapshot) -> None:
        self.machine = AdsMachine(node, DECODERS)
        place = node.locality
        here = Locality(place.region, place.zone, place.sub_zone)
        self._pool = ClusterPool(random.random, time.monotonic, here)
        self._names = Names(random.random)
        self._resolver = Resolver(self._lookup, naming, self._pool.view, node.id, caller_of(node))
        self._interest = Interest(max_listeners)
        self._servers: frozenset[str] = frozenset()
        self._listeners: Mapping[str, ListenerView] = {}
        self._server_listeners: Mapping[str, Listener] = {}
        self._hidden: frozenset[str] = frozenset()
        self._snapshot = snapshot
        self._stale = False
        self.restored: Saved | None = None

    # --- what happened; each returns the requests to send ---------------------------------------

    def want(self, names: Iterable[str], now: float) -> list[Any]:
        """Calls ask for these names."""
        before = self._interest.changes
        for name in names:
            self._interest.want(name)
        return self._want(now) if self._interest.changes != before else []

    def serve(self, servers: Collection[str], now: float) -> list[Any]:
        """The server listeners of this process, all of them."""
        if frozenset(servers) == self._servers:
            return []
        self._servers = frozenset(servers)
        return self._want(now)

    def received(self, response: Any, now: float) -> list[Any]:
        """A response came: the ACK or NACK first, then what follows from its content."""
        result = self.machine.received(response, now)
        for error in result.rejected:
            _log.warning("rejected: %s; the last good version stays in use", error)
        for warning in result.warnings:
            _log.warning("%s", warning)
        requests = list(result.requests)
        if result.changed:
            requests += self._apply(self._resolver.update(result.changed), now)
        return requests

    def tick(self, now: float) -> list[Any]:
        """Time has passed."""
        changed = self.machine.tick(now)
        return self._apply(self._resolver.update(changed), now) if changed else []

    def answered(self, answer: Answer, now: float) -> list[Any]:
        """A host name was looked up."""
        warning = self._names.answered(answer, now)
        if warning:
            _log.warning("%s", warning)
        return self._apply(self._resolver.update([(DNS, answer.name)]), now)

    def restore(self, saved: Saved, now: float) -> list[Any]:
        """Take in what was saved, for all that the control plane has not spoken of."""
        keys = set()
        for kind, items in saved.resources.items():
            if kind not in DECODERS:
                continue
            for name, raw in items.items():
                try:
                    self.machine.restore(kind, name, raw, saved.versions.get(kind, ""))
                except InvalidResource as error:
                    _log.warning("saved configuration: %s; it is left out", error)
                else:
                    keys.add((kind, name))
        for key in self._references():
            if self.machine.restore_absence(*key):
                keys.add(key)
        self.restored = saved
        return self._apply(self._resolver.update(keys), now)

    def _references(self) -> set[tuple[str, str]]:
        """What the restored resources refer to: routes, clusters, endpoints."""
        found: set[tuple[str, str]] = set()
        for state in list(self.machine.resources()):
            value = state.value if state.restored else None
            if isinstance(value, Listener):
                if value.route_config_name:
                    found.add((ROUTE, value.route_config_name))
                value = value.route_config
            if isinstance(value, RouteConfiguration):
                found |= {(CLUSTER, name) for name in value.cluster_names}
            if isinstance(value, Cluster) and value.kind is ClusterKind.EDS:
                found.add((ENDPOINT, value.eds_name or value.name))
        return found

    def want_restored(self, now: float) -> list[Any]:
        """Show every client listener that was restored, and subscribe to it."""
        found = [
            state.name
            for state in self.machine.resources(LISTENER)
            if state.restored and not state.value.address
        ]
        return self.want(found, now)

    # --- what is known --------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The snapshot to put in force; the same object while nothing changed."""
        since = self.restored.confirmed if self.restored and self.machine.unconfirmed else None
        if self._stale or since != self._snapshot.stale_since:
            hidden = self._hidden
            shown = self._listeners
            if hidden:
                shown = {n: view for n, view in shown.items() if n not in hidden}
            self._snapshot = Snapshot(
                listeners=shown, server_listeners=self._server_listeners, stale_since=since
            )
            self._stale = False
        return self._snapshot

    @property
    def wanted(self) -> bool:
        """Whether any name is wanted."""
        return bool(self._interest.names)

    @property
    def complete(self) -> bool:
        """Whether every wanted name has its view."""
        return self._interest.names <= self._listeners.keys()

    def saved(self, confirmed: float) -> Saved:
        """Everything good that is known, to be kept on disk or handed to a child."""
        resources: dict[str, dict[str, bytes]] = {}
        for state in self.machine.resources():
            if state.value is not None:
                resources.setdefault(state.type_url, {})[state.name] = state.raw
        versions = {kind: self.machine.version(kind) for kind in resources}
        return Saved(resources, versions, confirmed)

    def subscribed(self) -> dict[str, frozenset[str]]:
        """The wanted names by type."""
        return {kind: self.machine.subscribed(kind) for kind in DECODERS}

    def due(self, now: float) -> list[Name]:
        """The host names to look up now; each is to be `answered`."""
        return self._names.due(now)

    @property
    def deadline(self) -> float | None:
        """When `tick` or `due` has something to do."""
        timers = self.machine.deadline(), self._names.deadline
        return min((timer for timer in timers if timer is not None), default=None)

    # --- inside ---------------------------------------------------------------------------------

    def _lookup(self, url: str, name: Any) -> Any:
        return self._names.get(name) if url == DNS else self.machine.resource(url, name)

    def _want(self, now: float) -> list[Any]:
        hidden = self._interest.hidden
        self._stale = self._stale or hidden != self._hidden
        self._hidden = hidden
        wish = self._resolver.want(clients=self._interest.names, servers=self._servers)
        return self._apply(wish, now)

    def _apply(self, resolution: Resolution, now: float) -> list[Any]:
        requests: list[Any] = []
        for kind, names in resolution.subscriptions.items():
            requests += self.machine.subscribe(kind, names, now)
        for warning in resolution.warnings:
            _log.warning("%s", warning)
        if resolution.names is not None:
            self._names.want(resolution.names, now)
        if resolution.clusters is not None:
            self._pool.retain(resolution.clusters)
        if resolution.changed:
            self._listeners = resolution.listeners
            self._server_listeners = resolution.server_listeners
            self._stale = True
        return requests
