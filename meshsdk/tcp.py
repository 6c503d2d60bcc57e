"""Connections to TCP services of the mesh, in place of `socket` and `asyncio`.

    sock = mesh.create_connection(("postgres", 5432))
    reader, writer = await mesh.open_connection("postgres", 5432)

A host that the mesh knows is a cluster, chosen by the `tcp` or `tls` routes of its port with their
weights; the connection goes to one of its endpoints, and to another one where that cannot be
reached. It counts as an attempt on the endpoint until it is closed. Where the cluster asks for TLS
(DestinationRule `SIMPLE`, `MUTUAL`) the mesh begins it, unless the caller does.

A host that is not known is connected to as it always was; under REGISTRY_ONLY it is refused.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from meshsdk.balancing import ClusterView, EndpointState
from meshsdk.errors import CallError
from meshsdk.model import ListenerView, UpstreamTls
from meshsdk.opaque import decide_connection
from meshsdk.tls.context import check_peer, client_context

if TYPE_CHECKING:
    from meshsdk.mesh import Mesh

_MOST_ENDPOINTS = 5


def create_connection(
    mesh: Mesh,
    address: tuple[str, int],
    timeout: float | None = None,
    source_address: tuple[str, int] | None = None,
) -> socket.socket:
    """`socket.create_connection` through a mesh.

    Args:
        address: host and port; a host without a dot is looked up in the mesh's namespace.
        timeout: seconds for everything, and the timeout of the socket; None is no limit.

    Raises:
        NotReady: (a `TimeoutError`) no configuration came in time.
        ConnectionError: there is no such service, no endpoint, or none that can be reached.
    """
    host, port = address
    ends = None if timeout is None else time.monotonic() + timeout
    name, authority = _names(mesh, host, port)
    view = mesh.snapshot.view(name) or mesh.wait_for(name, timeout)
    cluster = _cluster(view, authority)
    if cluster is None:
        return socket.create_connection(address, _left(ends), source_address)
    tries = _Tries(cluster)
    for endpoint in tries:
        try:
            return _connected(endpoint, host, ends, timeout, source_address)
        except OSError as error:
            tries.failed(endpoint, error)
    raise tries.error()


async def open_connection(
    mesh: Mesh, host: str, port: int, *, limit: int = 2**16, **options: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """`asyncio.open_connection` through a mesh.

    Args:
        host: one without a dot is looked up in the mesh's namespace.
        limit: of the reader's buffer, in bytes.
        options: those of `loop.create_connection`. With `ssl` the TLS is the caller's, to the
            name `host` unless `server_hostname` is given.

    Raises:
        NotReady: (a `TimeoutError`) no configuration came in time.
        ConnectionError: there is no such service, no endpoint, or none that can be reached.
    """
    name, authority = _names(mesh, host, port)
    view = mesh.snapshot.view(name) or await mesh.wait_for_async(name)
    cluster = _cluster(view, authority)
    if cluster is None:
        return await asyncio.open_connection(host, port, limit=limit, **options)
    if options.get("ssl"):
        options.setdefault("server_hostname", host)
    tries = _Tries(cluster)
    for endpoint in tries:
        try:
            return await _opened(endpoint, host, limit, options)
        except (OSError, TimeoutError) as error:
            tries.failed(endpoint, error)
        except BaseException:
            endpoint.release()
            raise
    raise tries.error()


# --- where to --------------------------------------------------------------------------------


def _names(mesh: Mesh, host: str, port: int) -> tuple[str, str]:
    """The listener of a host and port, and the authority that it is called by."""
    bare = host.strip("[]")
    authority = f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"
    return mesh.listener_name(authority, port), authority


def _cluster(view: ListenerView, authority: str) -> ClusterView | None:
    try:
        return decide_connection(view, authority, random.random)
    except CallError as error:
        raise ConnectionRefusedError(str(error)) from error


class _Tries:
    """The endpoints to try, each acquired: the balancer's choice, then others."""

    def __init__(self, cluster: ClusterView) -> None:
        self._cluster = cluster
        self._failures: list[str] = []
        self._last: Exception | None = None

    def __iter__(self) -> Iterator[EndpointState]:
        try:
            chosen = self._cluster.pick(random.random)
        except CallError as error:
            self._last = error
            return
        yield chosen
        for endpoint in self._cluster.sequence(random.random):
            if endpoint is not chosen and len(self._failures) < _MOST_ENDPOINTS:
                endpoint.acquire()
                yield endpoint

    def failed(self, endpoint: EndpointState, error: Exception) -> None:
        endpoint.release()
        self._failures.append(f"{endpoint.target}: {error or type(error).__name__}")
        self._last = error

    def error(self) -> ConnectionError:
        name = self._cluster.cluster.name
        what = "; ".join(self._failures) or str(self._last)
        error = ConnectionError(f"no connection to cluster {name}: {what}")
        error.__cause__ = self._last
        return error


def _left(ends: float | None) -> float | None:
    if ends is None:
        return None
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _once(endpoint: EndpointState) -> Callable[[], None]:
    """Ends the attempt, however often it is called."""
    open_ = [True]

    def end() -> None:
        try:
            open_.pop()
        except IndexError:
            return
        endpoint.release()

    return end


def _tls_of(
    endpoint: EndpointState, host: str
) -> tuple[UpstreamTls, ssl.SSLContext, str | None] | None:
    tls = endpoint.cluster.tls_to(endpoint.endpoint)
    if tls is None:
        return None
    context = client_context(tls, tls.alpn)
    return tls, context, tls.server_name(host, endpoint.endpoint.hostname) or None


# --- sockets ---------------------------------------------------------------------------------


class _Socket(socket.socket):
    """A socket that says when it is closed."""

    __slots__ = ("_end",)

    _end: Callable[[], None]

    def close(self) -> None:
        super().close()
        self._end()


class _TlsSocket(ssl.SSLSocket):
    """The same with TLS; made by an `SSLContext`, which knows no arguments of ours."""

    _end: Callable[[], None] | None = None

    def close(self) -> None:
        super().close()
        if self._end is not None:
            self._end()


def _connected(
    endpoint: EndpointState,
    host: str,
    ends: float | None,
    timeout: float | None,
    source: tuple[str, int] | None,
) -> socket.socket:
    address = endpoint.endpoint
    family = socket.AF_INET6 if ":" in address.address else socket.AF_INET
    made = _Socket(family if address.port else socket.AF_UNIX, socket.SOCK_STREAM)
    made._end = end = _once(endpoint)
    opened: socket.socket = made
    try:
        left = _left(ends)
        most = endpoint.cluster.connect_timeout
        made.settimeout(most if left is None else min(left, most))
        if source is not None and address.port:
            made.bind(source)
        made.connect((address.address, address.port) if address.port else address.address)
        secured = _tls_of(endpoint, host)
        if secured is not None:
            opened = _secured(made, *secured)
        opened.settimeout(timeout)
    except BaseException:
        made._end = lambda: None  # who tries the next endpoint ends this attempt
        made.close()
        raise
    weakref.finalize(opened, end).atexit = False
    return opened


def _secured(
    plain: _Socket, tls: UpstreamTls, context: ssl.SSLContext, name: str | None
) -> socket.socket:
    context.sslsocket_class = _TlsSocket
    end = plain._end
    plain._end = lambda: None  # its descriptor goes over to the other
    secured = context.wrap_socket(plain, server_hostname=name)
    assert isinstance(secured, _TlsSocket)
    try:
        check_peer(tls, secured, name or "")
    except BaseException:
        secured.close()
        raise
    secured._end = end
    return secured


# --- streams ---------------------------------------------------------------------------------


class _Protocol(asyncio.StreamReaderProtocol):
    """The protocol of streams, which says when the connection is lost."""

    def __init__(
        self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop, end: Callable[[], None]
    ) -> None:
        super().__init__(reader, loop=loop)
        self._end = end

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end()


async def _opened(
    endpoint: EndpointState, host: str, limit: int, options: dict[str, Any]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    end = _once(endpoint)
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = _Protocol(reader, loop, lambda: None)
    address = endpoint.endpoint
    secured = None if options.get("ssl") else _tls_of(endpoint, host)
    if secured is not None:
        _, context, name = secured
        # asyncio wants a name or an empty one, which sends none.
        options = {**options, "ssl": context, "server_hostname": name or ""}
    async with asyncio.timeout(endpoint.cluster.connect_timeout):
        transport: asyncio.Transport
        if address.port:
            transport, _ = await loop.create_connection(
                lambda: protocol, address.address, address.port, **options
            )
        else:
            transport, _ = await loop.create_unix_connection(
                lambda: protocol, address.address, **options
            )
    if secured is not None:
        try:
            check_peer(secured[0], transport.get_extra_info("ssl_object"), secured[2] or "")
        except ssl.SSLCertVerificationError:
            transport.abort()
            raise
    protocol._end = end
    if transport.is_closing():
        end()
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
