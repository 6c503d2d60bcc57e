"""Transports and clients of httpx and httpx2 that go through a mesh."""

from __future__ import annotations

import threading
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from meshsdk._httpx.library import default_library, library, library_of, loaded
from meshsdk._httpx.pool import adopt
from meshsdk._httpx.watch import Attachment
from meshsdk.mesh import default_mesh

if TYPE_CHECKING:
    from meshsdk.mesh import Mesh


def _is_overridden(options: dict[str, Any]) -> bool:
    """Whether the caller has a say in TLS that a mesh host will not heed."""
    return options.get("verify", True) is not True or options.get("cert") is not None


class _Transport:
    """One transport for httpx and httpx2: to each it is an `HTTPTransport` of its own.

    Args:
        options: those of `httpx.HTTPTransport`.
    """

    _kind: str

    def __init__(self, mesh: Mesh, options: dict[str, Any]) -> None:
        self._attachment = Attachment(mesh)
        self._options = options
        self._overridden = _is_overridden(options)
        self._lock = threading.Lock()  # guards `_inner`, for adding to it
        self._inner: dict[str, Any] = {}
        # Wrong options fail here and not at the first request.
        self._for(default_library())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._attachment.mesh!r}>"

    def _for(self, name: str) -> Any:
        with self._lock:
            inner = self._inner.get(name)
            if inner is None:
                inner = getattr(library(name).httpx, self._kind)(**self._options)
                # Loading certificates takes long: the second library gets the first one's.
                self._options = {**self._options, "verify": inner._pool._ssl_context}
                self._options.pop("cert", None)
                adopt(inner, self._attachment, overridden=self._overridden)
                self._inner[name] = inner
            return inner

    def _of(self, request: Any) -> Any:
        name = type(request).__module__.partition(".")[0]
        inner = self._inner.get(name)
        return inner if inner is not None else self._for(library_of(request).name)


class _SyncTransport(_Transport):
    _kind = "HTTPTransport"

    def handle_request(self, request: Any) -> Any:
        return self._of(request).handle_request(request)

    def close(self) -> None:
        for inner in list(self._inner.values()):
            inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class _AsyncTransport(_Transport):
    _kind = "AsyncHTTPTransport"

    async def handle_async_request(self, request: Any) -> Any:
        return await self._of(request).handle_async_request(request)

    async def aclose(self) -> None:
        for inner in list(self._inner.values()):
            await inner.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()


@cache
def _transport_type(kind: str, names: tuple[str, ...]) -> Any:
    """A transport type that is a `BaseTransport` to every library that is loaded."""
    own, base = {
        "Transport": (_SyncTransport, "BaseTransport"),
        "AsyncTransport": (_AsyncTransport, "AsyncBaseTransport"),
    }[kind]
    bases = tuple(getattr(library(name).httpx, base) for name in names)
    return type(kind, (own, *bases), {"__module__": "meshsdk.httpx"})


def make_transport(mesh: Mesh, kind: str, options: dict[str, Any]) -> Any:
    """`kind` is `Transport` or `AsyncTransport`."""
    default_library()
    return _transport_type(kind, tuple(sorted(loaded())))(mesh, options)


@cache
def client_type(name: str, kind: str) -> Any:
    """`Client` or `AsyncClient` of the library `name`, that goes through a mesh."""
    base = getattr(library(name).httpx, kind)

    def __init__(self: Any, *, mesh: Mesh | None = None, **options: Any) -> None:  # noqa: N807
        base.__init__(self, **options)
        attachment = Attachment(default_mesh() if mesh is None else mesh)
        given = {id(transport) for transport in (options.get("mounts") or {}).values()}
        own = [t for t in self._mounts.values() if t is not None and id(t) not in given]
        if options.get("transport") is None:
            own.append(self._transport)
        for transport in own:
            adopt(transport, attachment, overridden=_is_overridden(options))

    doc = f"""`{name}.{kind}` whose requests go through a mesh.

    Args:
        mesh: the mesh; None is the one of this process, made from the environment.

    All other arguments are those of `{name}.{kind}`. A `transport` and `mounts` that are given are
    used as they are. A proxy, given or from the environment, is used for hosts that the mesh does
    not know.
    """
    return type(
        kind, (base,), {"__init__": __init__, "__doc__": doc, "__module__": f"meshsdk.{name}"}
    )
