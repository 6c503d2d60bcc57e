"""One way to write a test for httpx and httpx2, sync and async, without and with the mesh.

A test is written against the sync API; on the async side each call is carried to an event loop in
another thread.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import inspect
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import anyio.to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

import meshsdk.httpx
from meshsdk._httpx.sides import settle_orphans
from tests.support.http_backend import Backend
from tests.support.static_mesh import PASSTHROUGH, StaticMesh, forward

NAME = "reviews:9080"
URL = f"http://{NAME}"

# Loading the system's certificates takes httpx longer than most tests take.
_CONTEXT = ssl.create_default_context()


class OpenMesh(StaticMesh):
    """A mesh that knows what the test says, and lets everything else pass at once."""

    def wait_for(self, name: str, timeout: float | None = None) -> Any:
        if self.snapshot.view(name) is None:
            self.listen(name, forward(PASSTHROUGH.name))
        return self.snapshot.view(name)

    async def wait_for_async(self, name: str, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        return self.wait_for(name, timeout)


class WaitingMesh(StaticMesh):
    """A mesh whose callers wait, also under trio."""

    async def wait_for_async(self, name: str, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        return await anyio.to_thread.run_sync(self.wait_for, name, timeout)


def mesh_of(*backends: Backend, **action: Any) -> OpenMesh:
    """`reviews:9080` served by these backends."""
    mesh = OpenMesh()
    mesh.endpoints("reviews", *(backend.target for backend in backends))
    mesh.listen(NAME, forward("reviews", **action))
    return mesh


class Api:
    """One of httpx and httpx2, on one of its sides, one way.

    Attributes:
        m: the module.
        url: where the backend is, as the client writes it.
    """

    def __init__(self, way: str, library: str, side: str, mesh: StaticMesh, url: str) -> None:
        self.way = way
        self.m: Any = importlib.import_module(library)
        self.side = side
        self.mesh = mesh
        self.url = url
        self._stack = contextlib.ExitStack()
        self.portal: BlockingPortal | None = None
        if side != "sync":
            self.portal = self._stack.enter_context(start_blocking_portal(side))
        if way == "attached":
            meshsdk.httpx.attach(mesh)  # type: ignore[arg-type]
            self._stack.callback(meshsdk.httpx.detach)

    def close(self) -> None:
        self._stack.close()

    def assert_released(self) -> None:
        """No endpoint is left counted as busy; what a test dropped counts until it is collected."""
        settle_orphans()
        if any(self._active()):
            gc.collect()
            settle_orphans()
        assert not any(self._active())

    def _active(self) -> list[int]:
        views = self.mesh.snapshot.listeners.values()
        clusters = [cluster for view in views for cluster in view.clusters.values()]
        return [state.active for cluster in clusters for state in cluster.endpoints]

    @property
    def is_sync(self) -> bool:
        return self.side == "sync"

    def transport(self, **options: Any) -> Any:
        """The transport that this way is about."""
        if self.way == "mesh":
            make = meshsdk.httpx.transport if self.is_sync else meshsdk.httpx.async_transport
            return make(self.mesh, **options)  # type: ignore[arg-type]
        return getattr(self.m, "HTTPTransport" if self.is_sync else "AsyncHTTPTransport")(**options)

    def make(self, **options: Any) -> Any:
        """A client of the library's own type, or the shorthand of the mesh; not wrapped."""
        kind = "Client" if self.is_sync else "AsyncClient"
        if self.way == "mesh":
            home = importlib.import_module(f"meshsdk.{self.m.__name__}")
            return getattr(home, kind)(mesh=self.mesh, **options)
        return getattr(self.m, kind)(**options)

    @contextlib.contextmanager
    def client(self, **options: Any) -> Iterator[Any]:
        options.setdefault("verify", _CONTEXT)
        client = self.make(trust_env=False, **options)
        if self.portal is None:
            with client:
                yield client
        else:
            with self.portal.wrap_async_context_manager(client):
                yield _Carried(client, self.portal)

    def hook(self, function: Callable[..., None]) -> Callable[..., Any]:
        """An event hook of this side."""
        if self.is_sync:
            return function

        async def hook(*args: Any) -> None:
            function(*args)

        return hook

    def parts(self, chunks: Iterable[bytes]) -> Any:
        """A body that is made while it is sent."""
        if self.is_sync:
            return (chunk for chunk in chunks)

        async def generate() -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk

        return generate()

    def pool_of(self, client: Any) -> Any:
        """The mesh's pool below a client."""
        raw = getattr(client, "_it", client)
        transport = raw._transport
        inner = getattr(transport, "_inner", None)
        return (next(iter(inner.values())) if inner else transport)._pool


class _Carried:
    """An async object whose coroutines run in a portal's loop."""

    def __init__(self, it: Any, portal: BlockingPortal) -> None:
        self._it = it
        self._portal = portal

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._it, name)
        if inspect.iscoroutinefunction(value):

            def call(*args: Any, **more: Any) -> Any:
                result = self._portal.call(functools.partial(value, *args, **more))
                stream = more.get("stream")
                return _CarriedResponse(result, self._portal) if stream else result

            return call
        return value

    @contextlib.contextmanager
    def stream(self, *args: Any, **more: Any) -> Iterator[Any]:
        context = self._it.stream(*args, **more)
        with self._portal.wrap_async_context_manager(context) as response:
            yield _CarriedResponse(response, self._portal)


class _CarriedResponse(_Carried):
    def read(self) -> bytes:
        data: bytes = self._portal.call(self._it.aread)
        return data

    def close(self) -> None:
        self._portal.call(self._it.aclose)

    def iter_bytes(self, *args: Any) -> Iterator[bytes]:
        return self._iterate(self._it.aiter_bytes(*args))

    def iter_raw(self, *args: Any) -> Iterator[bytes]:
        return self._iterate(self._it.aiter_raw(*args))

    def iter_lines(self) -> Iterator[str]:
        return self._iterate(self._it.aiter_lines())

    def _iterate(self, iterator: Any) -> Iterator[Any]:
        while True:
            try:
                yield self._portal.call(iterator.__anext__)
            except StopAsyncIteration:
                return
