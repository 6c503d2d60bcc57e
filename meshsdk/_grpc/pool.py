"""The channels of one mesh channel, one per endpoint.

The hot path of a call reads `way.lane[endpoint]` without a lock. What makes that safe against
the removal of an endpoint is an order: a call counts itself on the endpoint (`pick`) and then
reads the lane; a removal empties the lane and then reads the count. So either the call finds
nothing in the lane, or the removal sees the call and leaves the channel open until it is over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import grpc
import grpc.experimental

from meshsdk._grpc.copies import MOST_AT_A_TIME
from meshsdk._grpc.secure import security_of
from meshsdk._grpc.values import authority_of, host_of
from meshsdk.balancing import ClusterView, EndpointState
from meshsdk.call import Forward
from meshsdk.fork import abandon
from meshsdk.model import ListenerView, Snapshot, UpstreamTls

if TYPE_CHECKING:
    from meshsdk._grpc.plan import Method

_log = logging.getLogger("meshsdk.grpc")

Options = Sequence[tuple[str, Any]]
Lane = dict[EndpointState, Any]

# gRPC's own port for a target without one.
_DEFAULT_PORT = 443
_SINGLE_THREADED = grpc.experimental.ChannelOptions.SingleThreadedUnaryStream


class MeshLike(Protocol):
    """The part of a mesh that gRPC channels use."""

    snapshot: Snapshot

    def listener_name(self, authority: str, default_port: int) -> str: ...
    def wait_for(self, name: str, timeout: float | None) -> ListenerView: ...
    def wait_for_async(self, name: str, timeout: float | None) -> Awaitable[ListenerView]: ...
    def observe(self, callback: Callable[[Snapshot], None]) -> None: ...
    def on_fork(self, callback: Callable[[], None]) -> None: ...


class Peer:
    """The channel to one endpoint under one authority.

    Attributes:
        tls: that the mesh begins; None for plain text and for that of the application.
        done: done callback of a call: ends its attempt.
    """

    __slots__ = ("channel", "done", "endpoint", "tls")

    def __init__(
        self, pool: Pool, endpoint: EndpointState, channel: Any, tls: UpstreamTls | None = None
    ) -> None:
        release = endpoint.release

        def done(call: object) -> None:
            release()
            if pool.draining:
                pool.sweep()

        self.endpoint = endpoint
        self.channel = channel
        self.tls = tls
        self.done = done


class Dialer(Protocol):
    """How a flavour of gRPC opens and closes channels."""

    def dial(self, target: str, options: Options, *, credentials: Any = None) -> Any: ...
    def close(self, channel: Any) -> None: ...
    def line(self, peer: Peer, callable: Any) -> Any: ...
    def closed_error(self) -> Exception: ...
    def crew(self, limit: int) -> Any: ...


def _name_of(mesh: MeshLike, authority: str | None) -> str | None:
    """The listener of an authority; None for what is no `host:port`, which grpc shall refuse."""
    if authority is not None:
        with contextlib.suppress(ValueError):
            return mesh.listener_name(authority, _DEFAULT_PORT)
    return None


_loaded_in = os.getpid()


def _own_sockets() -> Options:
    """What keeps the core of a forked child from the connections of its parent.

    Channels with equal arguments share connections, and the child inherits the table of them.
    """
    here = os.getpid()
    return () if here == _loaded_in else (("meshsdk.process", here),)


class Pool:
    """All channels that a mesh channel has opened.

    `_lock` guards `_peers`, `_direct`, `_methods`, `closed` and the assignment of `draining`; it
    is held while a channel object is made, never while one connects, is called or closed.
    """

    def __init__(self, mesh: MeshLike, target: str, options: Options, dialer: Dialer, *, tls: bool):
        self.mesh = mesh
        self.target = target
        self.authority = authority_of(target)
        self.name = _name_of(mesh, self.authority)
        self.closed = False
        self.draining: tuple[Peer, ...] = ()
        self._options = tuple(options)
        self._dialer = dialer
        self.tls = tls
        self.single_threaded = any(name == _SINGLE_THREADED for name, _ in options)
        self.crew = dialer.crew(MOST_AT_A_TIME)
        self._lock = threading.Lock()
        self._peers: dict[tuple[EndpointState, str], Peer] = {}
        self._direct: Any = None
        self._methods: weakref.WeakSet[Method] = weakref.WeakSet()
        mesh.observe(self.updated)
        mesh.on_fork(self.forget)

    def view(self, snapshot: Snapshot) -> ListenerView | None:
        return snapshot.view(self.name) if self.name else _FOREIGN

    def add(self, method: Method) -> None:
        with self._lock:
            self._methods.add(method)

    # --- channels ---

    def direct(self) -> Any:
        """The channel for calls that the mesh does not touch."""
        with self._lock:
            self.check_open()
            if self._direct is None:
                self._direct = self._dialer.dial(self.target, (*self._options, *_own_sockets()))
            return self._direct

    def line(self, method: Method, forward: Forward, endpoint: EndpointState) -> Any:
        """What a lane holds for an endpoint; the caller has picked it."""
        authority = method.authority_of(forward, endpoint)
        with self._lock:
            self.check_open()
            peer = self._peers.get((endpoint, authority))
            current = endpoint in self._current()
            if peer is None:
                peer = self._dial(endpoint, authority)
                if current:
                    self._peers[endpoint, authority] = peer
                else:
                    # A call that was decided before the endpoint left (it was delayed, say).
                    self.draining = (*self.draining, peer)
            line = self._dialer.line(peer, method.bind(peer.channel, forward.path))
            if current:
                method.lane(forward)[endpoint] = line
            return line

    def channel_of(self, method: Method, forward: Forward, endpoint: EndpointState) -> Any | None:
        """The channel to an endpoint if there is one already."""
        peer = self._peers.get((endpoint, method.authority_of(forward, endpoint)))
        return peer.channel if peer else None

    def channels(self) -> list[Any]:
        """Channels to the current endpoints that exist, with the direct one."""
        with self._lock:
            found = [peer.channel for peer in self._peers.values()]
            return [*found, self._direct] if self._direct is not None else found

    def connect(self, endpoint: EndpointState) -> Any:
        """The channel to an endpoint under the plain authority, made if there is none."""
        authority = self._wire_authority(self.authority or "", rewritten=False)
        return self.channel_to(endpoint, authority)

    def channel_to(self, endpoint: EndpointState, authority: str) -> Any:
        """The channel to an endpoint, made if there is none."""
        with self._lock:
            self.check_open()
            peer = self._peers.get((endpoint, authority))
            if peer is None:
                peer = self._peers[endpoint, authority] = self._dial(endpoint, authority)
            return peer.channel

    def _dial(self, endpoint: EndpointState, authority: str) -> Peer:
        """A channel to an endpoint, secured as its cluster asks for."""
        timeout = endpoint.cluster.connect_timeout
        tls = self._tls_to(endpoint)
        if tls is None:
            options = self._options_for(authority, timeout)
            return Peer(self, endpoint, self._dialer.dial(endpoint.target, options))
        host = host_of(authority)  # the core compares it with the certificate's names
        secured = security_of(tls, host, endpoint.endpoint.hostname)
        if secured.problem:
            _log.warning("cluster %s: TLS: %s", endpoint.cluster.name, secured.problem)
        options = [
            *self._options_for(host, timeout),
            ("grpc.ssl_target_name_override", secured.name),
        ]
        channel = self._dialer.dial(endpoint.target, options, credentials=secured.credentials)
        return Peer(self, endpoint, channel, tls)

    def _tls_to(self, endpoint: EndpointState) -> UpstreamTls | None:
        """TLS that the mesh begins: none around that of the application."""
        return None if self.tls else endpoint.cluster.tls_to(endpoint.endpoint)

    def check_open(self) -> None:
        """Raise what grpc raises for a call on a closed channel, if this one is."""
        if self.closed:
            raise self._dialer.closed_error()

    def _current(self) -> frozenset[EndpointState]:
        """Every endpoint that a call under the newest configuration may pick."""
        view = self.view(self.mesh.snapshot)
        clusters: tuple[ClusterView, ...] = tuple(view.clusters.values()) if view else ()
        return frozenset(endpoint for cluster in clusters for endpoint in cluster.endpoints)

    def _wire_authority(self, authority: str, *, rewritten: bool) -> str:
        if not rewritten:
            for name, value in self._options:
                if name == "grpc.default_authority":
                    return str(value)
        # The core compares it with the name of the certificate, which has no port.
        return host_of(authority) if self.tls else authority

    def wire_authority(self, forward: Forward, endpoint: EndpointState | None = None) -> str:
        if endpoint is not None and forward.host_of_endpoint:
            return self._wire_authority(forward.authority_at(endpoint), rewritten=True)
        return self._wire_authority(forward.authority, rewritten=forward.host_rewritten)

    def _options_for(self, authority: str, connect_timeout: float) -> Options:
        """The user's options, completed for a channel to one endpoint."""
        given = {name for name, _ in self._options}
        options = [o for o in self._options if o[0] != "grpc.default_authority"]
        options += _own_sockets()
        options.append(("grpc.default_authority", authority))
        if "grpc.enable_http_proxy" not in given:
            # An endpoint of the mesh is an address inside; proxies of the environment lead out.
            options.append(("grpc.enable_http_proxy", 0))
        if self.tls and "grpc.ssl_target_name_override" not in given:
            options.append(("grpc.ssl_target_name_override", host_of(self.authority or "")))
        if not any(name in given for name in _BACKOFF):
            # An endpoint that is in the configuration is expected back soon.
            options += [("grpc.initial_reconnect_backoff_ms", 200)]
            options += [("grpc.max_reconnect_backoff_ms", 5000)]
            if connect_timeout:
                options += [
                    ("grpc.min_reconnect_backoff_ms", max(100, int(connect_timeout * 1000)))
                ]
        return options

    # --- removal ---

    def updated(self, snapshot: Snapshot) -> None:
        """Called in the xDS thread after each change of the configuration."""
        self.retire(snapshot)

    def retire(self, snapshot: Snapshot) -> None:
        """Take channels to endpoints that are gone out of use; close those without calls."""
        with self._lock:
            current = self._current()
            gone = [
                key
                for key, peer in self._peers.items()
                if key[0] not in current or peer.tls != self._tls_to(key[0])
            ]
            if gone:
                self.draining = (*self.draining, *(self._peers.pop(key) for key in gone))
                left = {endpoint for endpoint, _ in gone}
                for method in self._methods:
                    method.drop(left)
        if self.draining:
            self.sweep()

    def sweep(self) -> None:
        """Close retired channels whose last call is over."""
        with self._lock:
            over = [peer for peer in self.draining if not peer.endpoint.active]
            self.draining = tuple(peer for peer in self.draining if peer not in over)
        for peer in over:
            self._dialer.close(peer.channel)

    def close(self) -> list[Any]:
        """Close for new calls; the channels for the caller to close."""
        with self._lock:
            self.closed = True
            self.crew.halt()
            channels = [peer.channel for peer in (*self._peers.values(), *self.draining)]
            if self._direct is not None:
                channels.append(self._direct)
            self._empty()
        return channels

    def forget(self) -> None:
        """After a fork, in the child: none of this is ours."""
        self._lock = threading.Lock()
        self.crew = self._dialer.crew(MOST_AT_A_TIME)
        abandon(self._peers, self._direct, self.draining)
        self._empty()

    def _empty(self) -> None:
        self._peers = {}
        self._direct = None
        self.draining = ()
        for method in list(self._methods):
            method.reset()


_BACKOFF = frozenset(
    {
        "grpc.initial_reconnect_backoff_ms",
        "grpc.max_reconnect_backoff_ms",
        "grpc.min_reconnect_backoff_ms",
    }
)
_FOREIGN = ListenerView("", passthrough=True)
