"""Gets a request to an endpoint of a cluster: over which connection, and what if one fails."""

from __future__ import annotations

import logging
import random
import time
from typing import Any

from meshsdk._httpx.connections import Connections, Waiter
from meshsdk._httpx.exchange import CallInfo, bare_host, replayable, text, timeouts, with_host
from meshsdk._httpx.http1 import Connection, Key
from meshsdk._httpx.library import Library
from meshsdk._httpx.sides import Side
from meshsdk._httpx.trip import Trip
from meshsdk.balancing import EndpointState
from meshsdk.errors import ConnectFailure

_draw = random.random


class _Worn(Exception):
    """A kept connection turned out to be dead; sending the request again is safe."""


class Sender:
    """The attempts of one client's requests.

    Args:
        inner: httpcore's pool whose limits and options the connections to endpoints get.
    """

    def __init__(self, side: Side, library: Library, inner: Any) -> None:
        self._side = side
        self._core = library.core
        self._byte_stream = library.httpx.ByteStream
        self._inner = inner
        self._logger = logging.getLogger(f"{library.core.__name__}.http11")
        self._spare = max(1, inner._retries)  # further endpoints that are tried
        self.connections = Connections(
            self._make,
            side.event,
            limit=inner._max_connections,
            keep=inner._max_keepalive_connections,
            expiry=inner._keepalive_expiry,
        )

    def _make(self, key: Key, endpoint: EndpointState) -> Connection:
        """A connection to an endpoint, not connected yet."""
        address = endpoint.endpoint
        uds = None if address.port else address.address
        scheme = b"http" if isinstance(key, str) else b"https"
        host = b"localhost" if uds else address.address.encode()
        inner = self._inner
        how = {
            "ssl_context": inner._ssl_context,
            "local_address": inner._local_address,
            "socket_options": inner._socket_options,
            "uds": uds,
        }
        return Connection(
            self._core,
            self._side.wire(inner._network_backend),
            how,
            key=key,
            origin=self._core.Origin(scheme, host, address.port or 80),
            target=endpoint.target,
            loop=self._side.loop(),
        )

    async def send(self, request: Any, trip: Trip) -> Any:
        """Send the request to an endpoint; to another one where the first cannot be reached.

        Raises:
            CallError: no answer, for a reason that the mesh answers for.
            UnsupportedProtocol: (of httpcore) the client allows HTTP/2 only.
        """
        if not self._inner._http1:
            raise self._core.UnsupportedProtocol(
                "the mesh speaks HTTP/1.1 to its hosts: leave http1=True, also with http2=True"
            )
        endpoint = trip.pick(_draw)
        failed: set[str] = set()
        fresh = False
        tries = 0
        while True:
            try:
                return await self._attempt(request, trip, endpoint, fresh)
            except ConnectFailure:
                endpoint.release()
                failed.add(endpoint.target)
                other = trip.another(failed, _draw) if tries < self._spare else None
                if other is None:
                    if tries >= self._inner._retries:
                        raise
                    other = await self._again(trip, tries)
                tries += 1
                endpoint = other
            except _Worn:
                endpoint.release()
                fresh = True
                endpoint = trip.pick(_draw)
            except BaseException:
                endpoint.release()
                raise

    async def _again(self, trip: Trip, tries: int) -> EndpointState:
        """The client's own `retries`, where there is no endpoint left: as httpcore does them."""
        await self._side.sleep(0.5 * 2 ** (tries - 1) if tries else 0)
        return trip.pick(_draw)

    async def _attempt(self, request: Any, trip: Trip, endpoint: EndpointState, fresh: bool) -> Any:
        """One try on one endpoint."""
        trip.endpoint = endpoint
        if trip.record is not None and not fresh:
            trip.record.tried(endpoint, time.monotonic())
        forward = trip.forward
        if forward is not None and forward.host_of_endpoint:
            request.headers = with_host(request.headers, forward.authority_at(endpoint))
        connection = await self._take(request, trip, endpoint, fresh)
        used, origin = connection.used, connection.origin
        request.url = self._core.URL(
            scheme=origin.scheme, host=origin.host, port=origin.port, target=request.url.target
        )
        tracer = self._side.tracer(request.extensions.get("trace"), self._logger)
        try:
            response = await connection.exchange(request, trip, tracer)
        except BaseException as error:
            self.connections.give_back(connection, reusable=False)
            if used:
                self._raise_if_worn(error, connection, request)
            else:
                self._raise_if_unreachable(error, trip, endpoint)
            raise
        connection.used = True
        if endpoint.load is not None:
            _tell_load(response, endpoint)
        response.stream = self._side.body(self, connection, endpoint)
        response.extensions["meshsdk"] = CallInfo(
            "-", trip.route, endpoint.cluster.name, endpoint.target
        )
        return response

    def _raise_if_worn(self, error: BaseException, connection: Connection, request: Any) -> None:
        """A server may close a kept connection just as a request is sent on it.

        Sending it again is safe when nothing of it was sent, or when it may be repeated. What is
        opaque is never repeated.
        """
        core = self._core
        broken = (core.RemoteProtocolError, core.ReadError, core.WriteError)
        opaque = isinstance(connection.key, tuple) and connection.key[2] is None
        again = not connection.sent or (not opaque and replayable(request, self._byte_stream))
        if isinstance(error, broken) and not connection.received and again:
            raise _Worn from error

    def _raise_if_unreachable(
        self, error: BaseException, trip: Trip, endpoint: EndpointState
    ) -> None:
        """Whose time was up? The caller's own limit stays the caller's own error."""
        if not isinstance(error, (self._core.ConnectError, self._core.ConnectTimeout)):
            return
        if isinstance(error, self._core.ConnectTimeout):
            if trip.limited_by == "caller":
                return
            if trip.limited_by == "route":
                raise trip.timed_out() from error
        raise trip.connect_failure(endpoint, error) from error

    async def _take(
        self, request: Any, trip: Trip, endpoint: EndpointState, fresh: bool
    ) -> Connection:
        """A connection to the endpoint that can be used.

        Raises:
            PoolTimeout: (of httpcore) the client's limit left none free in time.
        """
        connections = self.connections
        trip.connect_timeout = endpoint.cluster.connect_timeout
        key = _key(trip, endpoint)
        while True:
            connection = connections.take(key, endpoint, fresh=fresh)
            if isinstance(connection, Waiter):
                connection = await self._queue(connection, request)
            if not connection.used or not connection.stale(connections.expiry, self._side.loop()):
                return connection
            connections.give_back(connection, reusable=False)
            await self._side.close(connection)

    async def _queue(self, waiter: Waiter, request: Any) -> Connection:
        connections = self.connections
        try:
            await self._side.wait(waiter.event, timeouts(request).get("pool"))
        except BaseException:
            granted = connections.withdraw(waiter)
            if granted is not None:
                connections.give_back(granted, reusable=granted.used)
            raise
        granted = connections.withdraw(waiter)
        if granted is None:
            raise self._core.PoolTimeout
        return granted

    async def reap(self) -> None:
        """Close what is doomed."""
        doomed = self.connections.doomed
        while doomed:
            try:
                connection = doomed.popleft()
            except IndexError:  # another thread was faster
                return
            await self._side.close(connection)

    async def close(self) -> None:
        for connection in self.connections.clear():
            await self._side.close(connection)


def _tell_load(response: Any, endpoint: EndpointState) -> None:
    """What the response reports of the load of its endpoint."""
    from meshsdk.xds.decode.orca import load_report_of_headers

    headers = {text(name).lower(): text(value) for name, value in response.headers}
    report = load_report_of_headers(headers.get)
    if report is not None:
        endpoint.report(report, time.monotonic())


def _key(trip: Trip, endpoint: EndpointState) -> Key:
    """What tells connections apart: the endpoint, and whose TLS to which name."""
    name = trip.server_name
    if name is not None:
        return endpoint.target, name, None
    tls = endpoint.cluster.tls_to(endpoint.endpoint)
    if tls is None:
        return endpoint.target
    return endpoint.target, tls.server_name(bare_host(trip.host), endpoint.endpoint.hostname), tls
