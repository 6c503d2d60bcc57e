"""ASGI applications in the mesh: Starlette, FastAPI, Django and every other, on every server."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from meshsdk.inbound import REQUEST_ID, Inbound
from meshsdk.propagation import reset, serve
from meshsdk.serving import Port, Serving, numeric, termination

if TYPE_CHECKING:
    from meshsdk.mesh import Mesh

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_REQUEST_ID = REQUEST_ID.encode()


class MeshMiddleware:
    """Carries trace headers to outgoing calls, and registers the server while it runs.

    The registration follows the lifespan: after the application's startup, as soon as the port
    accepts connections, until SIGTERM or shutdown, whichever comes first. A server without
    lifespan is registered at the first request. Without `port`, `MESHSDK_PORTS` or `MESHSDK_PORT`
    the port is taken from the first request, which nobody sends who has to find it registered: say
    it. Without a WorkloadGroup (`MESHSDK_AUTO_REGISTER_GROUP`) nothing is registered.

    Args:
        app: the application.
        mesh: None for the mesh of the process.
        port: port to register.
        port_name: its name in the WorkloadGroup's template; `protocol` if not given.
        register: False when something else registers this server.

    Raises:
        ConfigurationError: a `MESHSDK_*` variable is wrong.
    """

    def __init__(
        self,
        app: Application,
        mesh: Mesh | None = None,
        *,
        port: int | None = None,
        address: str = "",
        port_name: str | None = None,
        protocol: str = "http",
        register: bool = True,
    ) -> None:
        self.app = app
        self._inbound = Inbound(os.environ)
        self._serving = Serving(mesh, os.environ) if register else None
        self._port_name = port_name or protocol
        self._protocol = protocol
        self._ports = (self._port(port, address),) if port else self._named_ports()

    def _named_ports(self) -> tuple[Port, ...]:
        return self._serving.ports if self._serving else ()

    def _port(self, number: int, address: str) -> Port:
        return Port(number, self._port_name, self._protocol, address)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(scope, receive, send)
        elif kind in ("http", "websocket"):
            await self._request(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._serving is not None:
            self._first_request(scope)
        wanted = self._inbound.wanted_bytes
        received = self._inbound.receive(
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name in wanted
        )
        if received.new_request_id:
            added = (_REQUEST_ID, received.new_request_id.encode())
            scope = {**scope, "headers": [*scope["headers"], added]}
        token = serve(received.carried)
        try:
            await self.app(scope, receive, send)
        finally:
            reset(token)

    # --- registration ---

    def _first_request(self, scope: Scope) -> None:
        serving, self._serving = self._serving, None
        server = scope.get("server")
        if serving is None:
            return
        if self._ports:
            serving.listening_soon(*self._ports)
        elif server and server[1]:
            serving.listening_soon(self._port(server[1], numeric(server[0])))

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        serving = self._serving
        if serving is None or not self._ports:
            await self.app(scope, receive, send)
            return
        self._serving, started = None, False

        async def registering(message: Message) -> None:
            nonlocal started
            if message["type"] == "lifespan.startup.complete":
                started = True
                serving.listening_soon(*self._ports)
                termination.install()
            elif message["type"].startswith("lifespan.shutdown."):
                serving.leave()
            await send(message)

        try:
            await self.app(scope, receive, registering)
        finally:
            if started:
                serving.leave()
            else:  # an application without lifespan: the server may go on without
                self._serving = serving
