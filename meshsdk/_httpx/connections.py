"""Connections to endpoints: one client's limits and its idle stacks.

`Connections` decides and does no I/O: what has to be closed is handed back, or put into `doomed`
for whoever next may do I/O. The connection that was used last is used next, so that the ones that
are not needed grow old and go.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from meshsdk._httpx.http1 import Connection, Key
from meshsdk.balancing import EndpointState


class Waiter:
    """One exchange that waits until the limit lets it have a connection."""

    __slots__ = ("endpoint", "event", "granted", "key")

    def __init__(self, key: Key, endpoint: EndpointState, event: Any) -> None:
        self.key = key
        self.endpoint = endpoint
        self.event = event
        self.granted: Connection | None = None


class Connections:
    """All connections of one client to endpoints.

    Any thread may call it: the xDS thread retires endpoints while callers come and go. `_lock`
    guards everything, and is held for arithmetic only.

    Args:
        make: makes a connection that is not connected yet.
        event: makes what a waiter waits on.
        limit: most connections at a time, idle ones included.
        keep: most idle connections.
        expiry: seconds after which an idle connection is too old; None is never.
    """

    def __init__(
        self,
        make: Callable[[Key, EndpointState], Connection],
        event: Callable[[], Any],
        *,
        limit: int,
        keep: int,
        expiry: float | None,
    ) -> None:
        self._make = make
        self._event = event
        self._limit = limit
        self._keep = keep
        self.expiry = expiry
        self.live: frozenset[str] | None = None
        self.forget()

    def forget(self) -> None:
        """Begin anew without closing anything; in a forked child nobody else holds the lock."""
        self._lock = threading.Lock()
        self._idle: dict[Key, list[Connection]] = {}
        self._aging: dict[Connection, None] = {}  # every idle connection, the oldest first
        self._active: set[Connection] = set()
        self._waiting: deque[Waiter] = deque()
        self.doomed: deque[Connection] = deque()

    def __repr__(self) -> str:
        return (
            f"<Connections active={len(self._active)} idle={len(self._aging)} "
            f"waiting={len(self._waiting)} doomed={len(self.doomed)}>"
        )

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many are active, idle, waited for."""
        return len(self._active), len(self._aging), len(self._waiting)

    def take(
        self, key: Key, endpoint: EndpointState, *, fresh: bool = False
    ) -> Connection | Waiter:
        """The idle connection that was used last, a new one, or a place in the queue."""
        with self._lock:
            stack = None if fresh else self._idle.get(key)
            if stack:
                connection = stack.pop()
                if not stack:
                    del self._idle[key]
                del self._aging[connection]
            else:
                if len(self._active) + len(self._aging) >= self._limit:
                    if not self._aging:
                        waiter = Waiter(key, endpoint, self._event())
                        self._waiting.append(waiter)
                        return waiter
                    self._retire_oldest()
                connection = self._make(key, endpoint)
            self._active.add(connection)
            return connection

    def give_back(self, connection: Connection, *, reusable: bool) -> None:
        """End of an exchange. A connection that is not reusable is closed already."""
        with self._lock:
            if connection not in self._active:  # the client was closed meanwhile
                return
            self._active.remove(connection)
            if reusable and self.live is not None and connection.target not in self.live:
                self.doomed.append(connection)
                reusable = False
            if self._waiting:
                self._hand_over(connection if reusable else None)
            elif reusable:
                self._keep_idle(connection)

    def abandon(self, connection: Connection) -> None:
        """End of an exchange that nobody ended: the connection is open and of no use."""
        with self._lock:
            known = connection in self._active
        if known:
            self.doomed.append(connection)
            self.give_back(connection, reusable=False)

    def _hand_over(self, connection: Connection | None) -> None:
        waiter = self._waiting.popleft()
        if connection is not None and connection.key != waiter.key:
            self.doomed.append(connection)
            connection = None
        if connection is not None:
            connection.idle_since = time.monotonic()
        waiter.granted = connection or self._make(waiter.key, waiter.endpoint)
        self._active.add(waiter.granted)
        waiter.event.set()

    def _keep_idle(self, connection: Connection) -> None:
        now = connection.idle_since = time.monotonic()
        self._idle.setdefault(connection.key, []).append(connection)
        self._aging[connection] = None
        while len(self._aging) > self._keep:
            self._retire_oldest()
        if self.expiry is not None:
            while self._aging and now - next(iter(self._aging)).idle_since > self.expiry:
                self._retire_oldest()

    def _retire_oldest(self) -> None:
        self.doomed.append(self._pull(next(iter(self._aging))))

    def _pull(self, connection: Connection) -> Connection:
        del self._aging[connection]
        stack = self._idle[connection.key]
        stack.remove(connection)
        if not stack:
            del self._idle[connection.key]
        return connection

    def withdraw(self, waiter: Waiter) -> Connection | None:
        """Leave the queue; the connection that was granted in the same moment, if any."""
        with self._lock:
            if waiter.granted is None:
                self._waiting.remove(waiter)
            return waiter.granted

    def retire(self, live: frozenset[str]) -> None:
        """Doom idle connections to targets that are not `live`, now and when they come back."""
        with self._lock:
            self.live = live
            gone = [c for c in self._aging if c.target not in live]
            self.doomed.extend(self._pull(connection) for connection in gone)

    def clear(self) -> list[Connection]:
        """Every connection there is, idle, in use and doomed, for its last close."""
        with self._lock:
            everything = [*self._aging, *self._active, *self.doomed]
            self._idle, self._aging, self._active = {}, {}, set()
            self.doomed.clear()
            while self._waiting and len(self._active) < self._limit:
                self._hand_over(None)
            return everything
