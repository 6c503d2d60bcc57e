"""httpx through the mesh; httpx2 is served by the same code.

    client = meshsdk.httpx.Client()                     # the mesh of this process
    client = meshsdk.httpx.AsyncClient(mesh=mesh)       # a mesh of your own
    client = httpx.Client(transport=mesh.transport())   # a client of your own
    meshsdk.httpx.attach()                              # every client of an unchanged program

What a caller sees, as with a sidecar:

- An answer that the mesh gives itself (redirect, direct response, abort, no route, no healthy
  upstream, no connection to any endpoint, route timeout) is an ordinary response with Envoy's
  status and body. Every response of a mesh host says what happened in
  `response.extensions["meshsdk"]`, a `CallInfo`.
- When the route's timeout passes after the response has begun, its body breaks off with
  `RemoteProtocolError`, as Envoy breaks the connection off.
- The caller's own limits stay the caller's own errors: `ConnectTimeout`, `ReadTimeout`,
  `WriteTimeout`, `PoolTimeout`. The first request to a host waits for its configuration as long as
  it may connect, and then raises `ConnectTimeout` with `NotReady` among its causes.
- An `https://` URL is opaque: of a host that the mesh knows it balances the connections, and TLS is
  the caller's. There is no response to give there, so what goes wrong is a `ConnectError`.
- A host that the mesh does not know is httpx's own affair, with all options of the client.

The limits of a client count its connections within the mesh and those to other hosts separately.
A request whose kept connection dies before a byte of the answer came is sent once more on a new one
when that is safe: nothing of it was sent, or its method is idempotent and its body in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshsdk._httpx.attach import attach, attached, detach
from meshsdk._httpx.exchange import CallInfo

if TYPE_CHECKING:
    import httpx as _httpx

    from meshsdk.mesh import Mesh

    class Client(_httpx.Client):
        """`httpx.Client` whose requests go through a mesh."""

        def __init__(self, *, mesh: Mesh | None = None, **options: Any) -> None: ...

    class AsyncClient(_httpx.AsyncClient):
        """`httpx.AsyncClient` whose requests go through a mesh."""

        def __init__(self, *, mesh: Mesh | None = None, **options: Any) -> None: ...


__all__ = [
    "AsyncClient",
    "CallInfo",
    "Client",
    "async_transport",
    "attach",
    "attached",
    "detach",
    "transport",
]


def transport(mesh: Mesh, **options: Any) -> Any:
    """A transport for `httpx.Client` and `httpx2.Client`, through a mesh.

    Args:
        options: those of `httpx.HTTPTransport`; they apply to hosts that the mesh does not know,
            and as far as they make sense there (limits, local address, socket options) to others.

    Raises:
        ImportError: neither library is installed.
    """
    from meshsdk._httpx.clients import make_transport

    return make_transport(mesh, "Transport", options)


def async_transport(mesh: Mesh, **options: Any) -> Any:
    """`transport` for `httpx.AsyncClient` and `httpx2.AsyncClient`."""
    from meshsdk._httpx.clients import make_transport

    return make_transport(mesh, "AsyncTransport", options)


def __getattr__(name: str) -> Any:
    if name not in ("Client", "AsyncClient"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from meshsdk._httpx.clients import client_type

    globals()[name] = client_type("httpx", name)
    return globals()[name]
