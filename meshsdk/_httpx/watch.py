"""What the pools of one mesh share: names, and the news that an endpoint or this process is new."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from meshsdk._httpx.http1 import ALPN
from meshsdk._httpx.sides import orphans
from meshsdk.model import Snapshot
from meshsdk.tls.context import prepare

if TYPE_CHECKING:
    from meshsdk._httpx.pool import MeshPool
    from meshsdk.mesh import Mesh


class Attachment:
    """Which mesh a pool belongs to; `mesh` None: none, every request goes out unchanged."""

    __slots__ = ("mesh",)

    def __init__(self, mesh: Mesh | None) -> None:
        self.mesh = mesh


class Watch:
    """Listens to one mesh for all pools of it.

    `names` is filled by any thread, whole entries at a time. `_pools` is guarded by `_lock`. `live`
    is set by the xDS thread.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.names: dict[tuple[bytes, bytes, int | None], str] = {}
        self.live: frozenset[str] | None = None
        self.said_overridden = False
        self._lock = threading.Lock()
        self._pools: weakref.WeakSet[MeshPool] = weakref.WeakSet()
        mesh.observe(self.changed)
        mesh.on_fork(self.forked)

    def join(self, pool: MeshPool) -> None:
        with self._lock:
            self._pools.add(pool)
            pool.connections.live = self.live

    def changed(self, snapshot: Snapshot) -> None:
        """Close idle connections to endpoints that are gone. Called by the xDS thread."""
        clusters = {c for view in snapshot.listeners.values() for c in view.clusters.values()}
        live = frozenset(state.target for cluster in clusters for state in cluster.endpoints)
        for cluster in clusters:
            prepare(cluster.cluster, ALPN)
        if live == self.live:
            return
        with self._lock:
            self.live = live
            pools = list(self._pools)
        for pool in pools:
            pool.retire(live)

    def forked(self) -> None:
        self._lock = threading.Lock()
        self.live = None
        orphans.clear()
        for pool in list(self._pools):
            pool.forget()


_watches: weakref.WeakKeyDictionary[Mesh, Watch] = weakref.WeakKeyDictionary()
_watches_lock = threading.Lock()


def watch_of(mesh: Mesh) -> Watch:
    """The one watch of a mesh."""
    with _watches_lock:
        watch = _watches.get(mesh)
        if watch is None:
            watch = _watches[mesh] = Watch(mesh)
        return watch
