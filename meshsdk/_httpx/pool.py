"""The connection pool that httpx gets: asks for a decision per request, and drives it."""

from __future__ import annotations

import logging
import random
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from meshsdk import propagation
from meshsdk._httpx import exchange, logged
from meshsdk._httpx.connections import Connections
from meshsdk._httpx.exchange import timeouts
from meshsdk._httpx.library import Library, library_of
from meshsdk._httpx.mirrors import Mirrors
from meshsdk._httpx.sender import Sender
from meshsdk._httpx.sides import Async, Side, Sync, finish, orphans, settle_orphans
from meshsdk._httpx.trip import Trip
from meshsdk._httpx.watch import Attachment, Watch, watch_of
from meshsdk.accesslog import Record
from meshsdk.call import Forward, Reply, Request, decide
from meshsdk.errors import CallError, NotReady
from meshsdk.model import ListenerView
from meshsdk.opaque import decide_connection

if TYPE_CHECKING:
    from meshsdk.mesh import Mesh

_log = logging.getLogger("meshsdk.httpx")
_draw = random.random

_PORTS = {b"http": 80, b"https": 443}
_NAMES_KEPT = 4096


class MeshPool:
    """Stands where httpx keeps its `httpcore.ConnectionPool`, which lives on inside.

    Written once, as coroutines; on the sync side they never suspend.

    Args:
        inner: the pool that was there: for hosts that the mesh does not know.
        overridden: the client was given `verify` or `cert`, which a mesh host does not heed.
    """

    _side: Side

    def __init__(
        self, library: Library, attachment: Attachment, inner: Any, *, overridden: bool = False
    ) -> None:
        self.attachment = attachment
        self.inner = inner
        self._library = library
        self._core = library.core
        self._overridden = overridden
        self._mesh: Mesh | None = None
        self._watch: Watch | None = None
        self._genuine: Any = None
        self.sender = Sender(self._side, library, inner)
        self.mirrors = Mirrors(self._side, library, inner)

    def __getattr__(self, name: str) -> Any:
        # Whoever looks into a pool, as some mocks and tests do, finds what was there before.
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.connections!r} {self.inner!r}>"

    @property
    def connections(self) -> Connections:
        return self.sender.connections

    def retire(self, live: frozenset[str]) -> None:
        """Only these targets exist from now on. Called by the xDS thread."""
        self.connections.retire(live)
        self.mirrors.retire(live)

    def forget(self) -> None:
        """In a forked child: no connection of the parent is used; none is said goodbye to."""
        self.connections.forget()
        self.mirrors.forget()
        inner = self.inner
        inner._connections = []
        inner._requests = []
        inner._optional_thread_lock = type(inner._optional_thread_lock)()

    async def _handle(self, request: Any) -> Any:
        mesh = self.attachment.mesh
        url = request.url
        if mesh is None or url.scheme not in _PORTS or self._mocked():
            return await self._side.send(self.inner, request)
        if orphans:
            settle_orphans()
        if self.connections.doomed:
            await self.sender.reap()
        name = self._name(mesh, url)
        view = mesh.snapshot.view(name)
        if view is None:
            view = await self._wait_for(mesh, name, request)
        if view.passthrough:
            return await self._side.send(self.inner, request)
        if url.scheme == b"https":
            return await self._opaque(view, request)
        if view.access_logs:
            return await self._logged(view, request)
        seen, added = exchange.described(request, propagation.outgoing())
        decision = decide(view, seen, _draw)
        if decision.delay:
            await self._pause(decision.delay, request)
        if isinstance(decision, Forward):
            return await self._forward(decision, request, seen, added)
        if isinstance(decision, Reply):
            return exchange.response(self._core, request, decision)
        return await self._side.send(self.inner, request)

    async def _logged(self, view: ListenerView, request: Any) -> Any:
        """As `_handle` goes on, for a listener with access logs."""
        seen, added = exchange.described(request, propagation.outgoing())
        seen.start = time.time()
        record = Record(view, seen, time.monotonic(), _draw)
        try:
            decision = decide(view, seen, _draw)
            record.decided(decision)
            if decision.delay:
                await self._pause(decision.delay, request)
            if isinstance(decision, Reply):
                response = exchange.response(self._core, request, decision)
            else:
                logged.count_request(request, record, self._library.httpx.ByteStream)
                if isinstance(decision, Forward):
                    response = await self._forward(decision, request, seen, added, record)
                else:
                    record.tried(None, time.monotonic())
                    response = await self._side.send(self.inner, request)
        except BaseException as error:
            logged.ended(self._core, record, error)
            raise
        logged.watch_response(self._core, request, response, record)
        return response

    def _mocked(self) -> bool:
        """Whether a mock (respx, vcrpy) has taken httpcore's pool over: then it decides."""
        method = getattr(type(self.inner), self._side.method)
        if method is self._genuine:
            return False
        if not self._library.genuine(method):
            return True
        self._genuine = method
        return False

    def _name(self, mesh: Mesh, url: Any) -> str:
        """The listener's name for a URL, remembered."""
        watch = self._watch
        if watch is None or mesh is not self._mesh:
            watch = watch_of(mesh)
            watch.join(self)
            self._mesh, self._watch = mesh, watch
        key = url.scheme, url.host, url.port
        name = watch.names.get(key)
        if name is None:
            if len(watch.names) >= _NAMES_KEPT:
                watch.names.clear()
            name = mesh.listener_name(exchange.authority(url), _PORTS[url.scheme])
            watch.names[key] = name
        return name

    async def _wait_for(self, mesh: Mesh, name: str, request: Any) -> ListenerView:
        """The configuration of a host that is asked for the first time."""
        try:
            return await self._side.wait_for(mesh, name, timeouts(request).get("connect"))
        except NotReady as error:
            raise self._core.ConnectTimeout(str(error)) from error

    async def _pause(self, delay: float, request: Any) -> None:
        """An injected delay: to the caller it is a server that takes its time."""
        patience = timeouts(request).get("read")
        if patience is not None and delay >= patience:
            await self._side.sleep(patience)
            raise self._core.ReadTimeout(f"an injected delay of {delay:g} s was too long to wait")
        await self._side.sleep(delay)

    async def _forward(
        self,
        forward: Forward,
        request: Any,
        seen: Request,
        added: bool,
        record: Record | None = None,
    ) -> Any:
        if self._overridden:
            self._say_overridden(request)
        if added or forward.changes_request or forward.host_rewritten:
            request.headers = exchange.headers_to_send(request, seen, forward)
        if forward.path_rewritten:
            request.url.target = exchange.raw(forward.path)
        trip = Trip(
            forward.cluster,
            forward.route.name,
            request.extensions,
            timeout=forward.timeout,
            waited=forward.delay,
            host=forward.authority,
            forward=forward,
            key=forward.key,
            record=record,
        )
        if forward.mirrors:
            self.mirrors.copy(request, forward)
        try:
            response = await self.sender.send(request, trip)
        except CallError as error:
            return exchange.response(self._core, request, forward.reply(error))
        if forward.changes_response:
            response.headers = exchange.headers_to_hand_on(
                response.headers, forward, response.status, trip.endpoint
            )
        return response

    async def _opaque(self, view: ListenerView, request: Any) -> Any:
        """https: the mesh chooses the endpoint of the connection and reads nothing."""
        url = request.url
        try:
            cluster = decide_connection(view, exchange.authority(url), _draw)
            if cluster is None:
                return await self._side.send(self.inner, request)
            name = url.host.decode("ascii")
            trip = Trip(cluster, "", request.extensions, server_name=name)
            return await self.sender.send(request, trip)
        except CallError as error:
            raise self._core.ConnectError(str(error)) from error

    def _say_overridden(self, request: Any) -> None:
        watch = self._watch
        self._overridden = False
        if watch is not None and not watch.said_overridden:
            watch.said_overridden = True
            _log.warning(
                "verify= and cert= do not apply to http://%s: how calls within the mesh are "
                "protected is for the mesh to decide; they apply to https:// and to other hosts",
                exchange.authority(request.url),
            )


class Pool(MeshPool):
    """For `httpx.HTTPTransport`; any threads share it."""

    _side = Sync()

    def handle_request(self, request: Any) -> Any:
        return finish(self._handle(request))

    def retire(self, live: frozenset[str]) -> None:
        super().retire(live)
        finish(self.sender.reap())

    def close(self) -> None:
        finish(self.mirrors.close())
        finish(self.sender.close())
        self.inner.close()

    def __enter__(self) -> Self:
        self.inner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self.close()


class AsyncPool(MeshPool):
    """For `httpx.AsyncHTTPTransport`; belongs to the event loop that uses it.

    Connections to endpoints that are gone wait for the next request to be closed: the xDS thread
    must not touch what belongs to the loop.
    """

    _side = Async()

    async def handle_async_request(self, request: Any) -> Any:
        return await self._handle(request)

    async def aclose(self) -> None:
        await self.mirrors.close()
        await self.sender.close()
        await self.inner.aclose()

    async def __aenter__(self) -> Self:
        await self.inner.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        await self.aclose()


def adopt(transport: Any, attachment: Attachment, *, overridden: bool = False) -> None:
    """Put the mesh under an `HTTPTransport` or `AsyncHTTPTransport` of httpx or httpx2."""
    inner = transport._pool
    kind = AsyncPool if hasattr(inner, "handle_async_request") else Pool
    transport._pool = kind(library_of(transport), attachment, inner, overridden=overridden)
