"""The ways from an application into its mesh, each loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import asyncio
    import socket

    import grpc

    from meshsdk.mesh import Mesh

_Options = Sequence[tuple[str, Any]]


class Adapters:
    """Base of `Mesh`: one method per framework."""

    @property
    def _mesh(self) -> Mesh:
        return cast("Mesh", self)

    # --- gRPC ----------------------------------------------------------------------------------

    def channel(
        self,
        target: str,
        options: _Options | None = None,
        compression: grpc.Compression | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> grpc.Channel:
        """A channel to a service of the mesh, in place of `grpc.insecure_channel(target)`.

        Args:
            target: `host:port`; a host without a dot is looked up in the mesh's namespace.
            credentials: in place of `grpc.secure_channel(target, credentials)`.
        """
        from meshsdk.grpc import MeshChannel

        return MeshChannel(self._mesh, target, options, compression, credentials)

    def aio_channel(
        self,
        target: str,
        options: _Options | None = None,
        compression: grpc.Compression | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None,
    ) -> grpc.aio.Channel:
        """A channel to a service of the mesh, in place of `grpc.aio.insecure_channel(target)`."""
        from meshsdk.grpc_aio import MeshAioChannel

        return MeshAioChannel(self._mesh, target, options, compression, credentials, interceptors)

    def client_interceptor(self, target: str, **channel: Any) -> Any:
        """An interceptor that sends the calls of a channel of your own through the mesh.

        Args:
            target: as for `channel`: an interceptor cannot see where its channel goes.
            channel: further arguments of `channel`.
        """
        from meshsdk.grpc import client_interceptor

        return client_interceptor(self._mesh, target, **channel)

    def aio_client_interceptors(
        self, target: str, **channel: Any
    ) -> list[grpc.aio.ClientInterceptor]:
        """`client_interceptor` for `grpc.aio`: pass them on as `interceptors=`."""
        from meshsdk.grpc_aio import client_interceptors

        return client_interceptors(self._mesh, target, **channel)

    def server_interceptor(self) -> grpc.ServerInterceptor:
        """For `grpc.server(..., interceptors=[...])`: carries trace headers."""
        from meshsdk.grpc_server import ServerInterceptor

        return ServerInterceptor()

    def aio_server_interceptor(self) -> grpc.aio.ServerInterceptor:
        """For `grpc.aio.server(interceptors=[...])`: carries trace headers."""
        from meshsdk.grpc_server import AioServerInterceptor

        return AioServerInterceptor()

    # --- TCP -----------------------------------------------------------------------------------

    def create_connection(
        self,
        address: tuple[str, int],
        timeout: float | None = None,
        source_address: tuple[str, int] | None = None,
    ) -> socket.socket:
        """A connection to a TCP service of the mesh, in place of `socket.create_connection`.

        Args:
            address: host and port; a host without a dot is looked up in the mesh's namespace.
            timeout: seconds for everything, and the timeout of the socket; None is no limit.

        Raises:
            NotReady: (a `TimeoutError`) no configuration came in time.
            ConnectionError: no such service, no endpoint, or none that can be reached.
        """
        from meshsdk.tcp import create_connection

        return create_connection(self._mesh, address, timeout, source_address)

    async def open_connection(
        self, host: str, port: int, *, limit: int = 2**16, **options: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Streams to a TCP service of the mesh, in place of `asyncio.open_connection`.

        Args:
            options: those of `loop.create_connection`, `ssl` among them.

        Raises:
            NotReady: (a `TimeoutError`) no configuration came in time.
            ConnectionError: no such service, no endpoint, or none that can be reached.
        """
        from meshsdk.tcp import open_connection

        return await open_connection(self._mesh, host, port, limit=limit, **options)

    # --- HTTP ----------------------------------------------------------------------------------

    def transport(self, **arguments: Any) -> Any:
        """For `httpx.Client(transport=...)` and httpx2's.

        Args:
            arguments: as for `httpx.HTTPTransport`.
        """
        from meshsdk.httpx import transport

        return transport(self._mesh, **arguments)

    def async_transport(self, **arguments: Any) -> Any:
        """For `httpx.AsyncClient(transport=...)` and httpx2's.

        Args:
            arguments: as for `httpx.AsyncHTTPTransport`.
        """
        from meshsdk.httpx import async_transport

        return async_transport(self._mesh, **arguments)

    def asgi(self, app: Any, **registration: Any) -> Any:
        """`app` as an ASGI application of the mesh: trace headers and registration.

        Args:
            registration: `port`, `address` and the others of `meshsdk.asgi.MeshMiddleware`.
        """
        from meshsdk.asgi import MeshMiddleware

        return MeshMiddleware(app, self._mesh, **registration)

    def wsgi(self, app: Any, **registration: Any) -> Any:
        """`app` as a WSGI application of the mesh: trace headers and registration.

        Args:
            registration: `port`, `address` and the others of `meshsdk.wsgi.MeshMiddleware`.
        """
        from meshsdk.wsgi import MeshMiddleware

        return MeshMiddleware(app, self._mesh, **registration)
