"""WSGI applications in the mesh: Flask, Django and every other, on every server."""

from __future__ import annotations

import contextvars
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from meshsdk.inbound import Inbound
from meshsdk.propagation import serve
from meshsdk.serving import Port, Serving, numeric, termination

if TYPE_CHECKING:
    from meshsdk.mesh import Mesh

Environ = dict[str, Any]
Application = Callable[[Environ, Any], Iterable[bytes]]

_END = object()


class MeshMiddleware:
    """Carries trace headers to outgoing calls, and registers the server while it runs.

    WSGI knows no startup: with `port`, `MESHSDK_PORTS` or `MESHSDK_PORT` the registration begins
    as soon as that port accepts connections, otherwise at the first request, which nobody sends
    who has to find it registered: say the port. It ends with SIGTERM or with the process.

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
        self._names = {
            "HTTP_" + name.upper().replace("-", "_"): name for name in self._inbound.wanted
        }
        self._serving = Serving(mesh, os.environ) if register else None
        self._port_name = port_name or protocol
        self._protocol = protocol
        ports = self._serving.ports if self._serving else ()
        if port:
            ports = (Port(port, self._port_name, protocol, address),)
        if self._serving is not None and ports:
            self._serving.listening_soon(*ports)
            termination.install()
            self._serving = None

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        if self._serving is not None:
            self._first_request(environ)
        names = self._names
        received = self._inbound.receive(
            [(names[key], value) for key, value in environ.items() if key in names]
        )
        if received.new_request_id:
            environ["HTTP_X_REQUEST_ID"] = received.new_request_id
        # A context of its own: server threads go from request to request and keep theirs, and
        # the response is iterated after this function has returned.
        own = contextvars.copy_context()
        own.run(serve, received.carried)
        body = own.run(self.app, environ, start_response)
        wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(body, (list, tuple)):
            return body
        if isinstance(wrapper, type) and isinstance(body, wrapper):
            return body
        return _Body(own, body)

    def _first_request(self, environ: Environ) -> None:
        serving, self._serving = self._serving, None
        port = environ.get("SERVER_PORT", "")
        if serving is not None and port.isdecimal() and port != "0":
            address = numeric(environ.get("SERVER_NAME", ""))
            serving.listening_soon(Port(int(port), self._port_name, self._protocol, address))


class _Body:
    """A response body whose every step runs in the context of its request."""

    __slots__ = ("_body", "_iterator", "_own")

    def __init__(self, own: contextvars.Context, body: Iterable[bytes]) -> None:
        self._own = own
        self._body = body
        self._iterator: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._iterator is None:
            self._iterator = self._own.run(iter, self._body)
        chunk = self._own.run(next, self._iterator, _END)
        if chunk is _END:
            raise StopIteration
        return chunk  # type: ignore[return-value]

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            self._own.run(close)
