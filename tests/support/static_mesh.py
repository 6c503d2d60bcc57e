"""A mesh without a control plane: the test puts snapshots in force by hand."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from meshsdk.balancing import ClusterPool
from meshsdk.errors import NotReady
from meshsdk.matching import PathKind, PathMatch
from meshsdk.model import (
    Assignment,
    Balancing,
    Cluster,
    ClusterKind,
    Endpoint,
    ForwardAction,
    ListenerView,
    LocalityEndpoints,
    Route,
    RouteConfiguration,
    RouteMatch,
    Snapshot,
    VirtualHost,
    WeightedCluster,
)
from meshsdk.xds.naming import split_authority

ANY = RouteMatch(PathMatch(PathKind.PREFIX, "/"))


def forward(*clusters: str | tuple[str, int], match: RouteMatch = ANY, **more: Any) -> Route:
    """A route to clusters (a name, or name and weight); fields of action and route by keyword."""
    action = {k: more.pop(k) for k in list(more) if k in ForwardAction.__dataclass_fields__}
    entries = [c if isinstance(c, tuple) else (c, 1) for c in clusters]
    targets = tuple(WeightedCluster(name, weight) for name, weight in entries)
    return Route(
        "to-" + "-".join(name for name, _ in entries),
        match,
        ForwardAction(targets, **action),
        **more,
    )


def cluster(name: str, balancing: Balancing = Balancing.ROUND_ROBIN, **more: Any) -> Cluster:
    return Cluster(name, balancing=balancing, **more)


PASSTHROUGH = Cluster(
    "PassthroughCluster", ClusterKind.ORIGINAL_DST, balancing=Balancing.CLUSTER_PROVIDED
)


class StaticMesh:
    """What an adapter needs of a mesh, over snapshots that the test builds.

    Any thread may use it; `_changed` guards what waits for a listener.
    """

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self._pool = ClusterPool(lambda: 0.0)
        self._clusters: dict[str, Cluster] = {}
        self._endpoints: dict[str, tuple[Endpoint, ...]] = {}
        self._observers: list[weakref.WeakMethod[Any]] = []
        self._fork_callbacks: list[weakref.WeakMethod[Any]] = []
        self._changed = threading.Condition()

    def listener_name(self, authority: str, default_port: int) -> str:
        """The authority itself; short names stay short, to keep tests readable."""
        host, port = split_authority(authority)
        return f"{host}:{port or default_port}"

    # --- what a test sets ---

    def endpoints(self, name: str, *targets: str, **more: Any) -> None:
        """The endpoints (`ip:port`) of a cluster, in force with the next `listen` or `publish`."""
        made = [target.rpartition(":") for target in targets]
        self._endpoints[name] = tuple(Endpoint(host, int(port)) for host, _, port in made)
        self._clusters[name] = cluster(name, **more)

    def view(
        self, name: str, *routes: Route, domains: Sequence[str] = ("*",), **more: Any
    ) -> ListenerView:
        config = RouteConfiguration("rc", (VirtualHost("vh", tuple(domains), routes),), **more)
        clusters: dict[str, Any] = {}
        for each in config.cluster_names:
            if each == PASSTHROUGH.name:
                clusters[each] = self._pool.view(PASSTHROUGH, None)
            elif each in self._clusters:
                group = LocalityEndpoints(self._endpoints[each])
                clusters[each] = self._pool.view(self._clusters[each], Assignment(each, (group,)))
        return ListenerView(name, config, clusters)

    def listen(self, name: str, *routes: Route, **more: Any) -> None:
        """Put a listener in force."""
        self.publish({**self.snapshot.listeners, name: self.view(name, *routes, **more)})

    def publish(self, listeners: Mapping[str, ListenerView], **more: Any) -> None:
        with self._changed:
            self.snapshot = Snapshot(listeners, **more)
            self._changed.notify_all()
        for reference in list(self._observers):
            callback = reference()
            if callback is not None:
                callback(self.snapshot)

    # --- what an adapter uses ---

    def wait_for(self, name: str, timeout: float | None = None) -> ListenerView:
        with self._changed:
            self._changed.wait_for(lambda: self.snapshot.view(name) is not None, timeout)
        view = self.snapshot.view(name)
        if view is None:
            raise NotReady(f"nothing arrived for {name}")
        return view

    async def wait_for_async(self, name: str, timeout: float | None = None) -> ListenerView:  # noqa: ASYNC109
        return await asyncio.to_thread(self.wait_for, name, timeout)

    def observe(self, callback: Callable[[Snapshot], None]) -> None:
        self._observers.append(weakref.WeakMethod(callback))

    def on_fork(self, callback: Callable[[], None]) -> None:
        self._fork_callbacks.append(weakref.WeakMethod(callback))
