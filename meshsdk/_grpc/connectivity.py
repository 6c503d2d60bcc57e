"""The connectivity of a mesh channel: one state for the channels to all endpoints."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import grpc

from meshsdk._grpc.pool import Pool
from meshsdk.balancing import ClusterView

_log = logging.getLogger("meshsdk.grpc")

State = grpc.ChannelConnectivity
StateOf = Callable[[Any, bool], State]
"""State of a channel of grpc; the flag asks it to connect."""

# Seconds between two looks. grpc's own sync channels look every 0.2 s.
POLL = 0.05


def aggregate(states: Iterable[State]) -> State:
    """One state for several channels, as the round robin policy of the C core forms it."""
    found = set(states)
    for state in (State.READY, State.CONNECTING, State.IDLE):
        if state in found:
            return state
    return State.TRANSIENT_FAILURE if found else State.IDLE


def aggregate_of_ring(states: Sequence[State]) -> State:
    """One state for the endpoints of a ring: a call needs the one of its key, so that two that
    are down are enough to say so. Source: gRFC A42."""
    down = sum(state is State.TRANSIENT_FAILURE for state in states)
    if State.READY in states:
        return State.READY
    if down >= 2:
        return State.TRANSIENT_FAILURE
    if State.CONNECTING in states or (down and len(states) > 1):
        return State.CONNECTING
    return State.TRANSIENT_FAILURE if down else State.IDLE


def connectivity(pool: Pool, state_of: StateOf, *, connect: bool) -> State:
    """The state of a mesh channel now.

    Before the configuration is known it is CONNECTING (IDLE if nobody wants to connect); a target
    that the mesh answers itself is a TRANSIENT_FAILURE. To connect means one endpoint per
    cluster, the next one when that fails: the others connect when calls come to them.
    """
    if pool.closed:
        return State.SHUTDOWN
    view = pool.view(pool.mesh.snapshot)
    if view is None:
        return State.CONNECTING if connect else State.IDLE
    if view.passthrough:
        return state_of(pool.direct(), connect)
    clusters: tuple[ClusterView, ...] = tuple(view.clusters.values())
    states = [state_of(channel, False) for channel in pool.channels()]
    if connect and State.READY not in states:
        states += [_connect(pool, cluster, state_of) for cluster in clusters]
    if states:
        rings = all(cluster.cluster.balancing.hashes for cluster in clusters)
        return aggregate_of_ring(states) if rings else aggregate(states)
    reachable = any(cluster.endpoints or cluster.passthrough for cluster in clusters)
    return State.IDLE if reachable else State.TRANSIENT_FAILURE


def _connect(pool: Pool, cluster: ClusterView, state_of: StateOf) -> State:
    if cluster.passthrough:
        return state_of(pool.direct(), True)
    state = State.TRANSIENT_FAILURE
    for endpoint in cluster.endpoints:
        state = state_of(pool.connect(endpoint), True)
        if state is not State.TRANSIENT_FAILURE:
            break
    return state


class Watcher:
    """Delivers changes of a state to callbacks, by a thread that lives while there are any.

    `_lock` guards everything. Callbacks run in the thread, one after another, as grpc's do.
    """

    def __init__(self, look: Callable[[bool], State]) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._callbacks: list[list[Any]] = []
        self._connect = False
        self._wake = threading.Event()
        self._running = False

    def subscribe(self, callback: Callable[[State], None], connect: bool) -> None:
        with self._lock:
            self._callbacks.append([callback, None])
            self._connect |= connect
            self._wake.set()
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="meshsdk-connectivity", daemon=True).start()

    def unsubscribe(self, callback: Callable[[State], None]) -> None:
        with self._lock:
            for index, entry in enumerate(self._callbacks):
                if entry[0] == callback:
                    del self._callbacks[index]
                    break
            self._wake.set()

    def clear(self) -> None:
        with self._lock:
            self._callbacks.clear()
            self._wake.set()

    def forget(self) -> None:
        """After a fork: the thread is not there; subscribers get a new one."""
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._running = False
        if self._callbacks:
            entry = self._callbacks.pop()
            self.subscribe(entry[0], self._connect)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._callbacks:
                    self._running = self._connect = False
                    return
                connect = self._connect
                self._wake.clear()
            state = self._look(connect)
            with self._lock:
                due = [entry for entry in self._callbacks if entry[1] is not state]
                for entry in due:
                    entry[1] = state
            for callback, _ in due:
                try:
                    callback(state)
                except Exception:
                    _log.exception("exception in a connectivity callback")
            self._wake.wait(POLL)
