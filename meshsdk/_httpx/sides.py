"""What differs between the sync and the async side of httpcore.

`Sync` has the same coroutines as `Async`, which there never suspend: so the code above them is
written once.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import anyio

from meshsdk._httpx.connections import Connections
from meshsdk._httpx.http1 import Connection, Tracer
from meshsdk._httpx.wire import AsyncWire, SyncWire
from meshsdk.balancing import EndpointState
from meshsdk.crew import Tasks, Threads
from meshsdk.model import ListenerView

if TYPE_CHECKING:
    from meshsdk._httpx.sender import Sender
    from meshsdk.mesh import Mesh

orphans: deque[tuple[Connections, Connection, EndpointState]] = deque()
"""What was dropped without being closed: put here by the garbage collector, which may run while
this very thread holds a lock, and settled by the next request of any pool."""


def settle_orphans() -> None:
    while orphans:
        try:
            connections, connection, endpoint = orphans.popleft()
        except IndexError:  # another thread was faster
            return
        endpoint.release()
        connections.abandon(connection)


def finish(coroutine: Any) -> Any:
    """Run a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("a sync call suspended")


# --- bodies ----------------------------------------------------------------------------------


class _Body:
    """A response's body: when it is closed, the connection and the endpoint are free."""

    __slots__ = ("_connection", "_endpoint", "_open", "_sender")

    def __init__(self, sender: Sender, connection: Connection, endpoint: EndpointState) -> None:
        self._sender = sender
        self._connection = connection
        self._endpoint = endpoint
        self._open = [True]

    async def discard(self) -> None:
        """Read to the end, for nobody."""
        try:
            while await self._connection.chunk() is not None:
                pass
        finally:
            await self.finish()

    async def finish(self) -> None:
        """Once, also for two threads that close at the same time."""
        try:
            self._open.pop()
        except IndexError:
            return
        connections = self._sender.connections
        try:
            await self._connection.finish()
        finally:
            self._endpoint.release()
            connections.give_back(self._connection, reusable=self._connection.reusable)
        if connections.doomed:
            await self._sender.reap()

    def __del__(self, orphans: deque[Any] = orphans) -> None:
        if self._open:
            orphans.append((self._sender.connections, self._connection, self._endpoint))


class SyncBody(_Body):
    __slots__ = ()

    def __iter__(self) -> Iterator[bytes]:
        chunk = self._connection.chunk
        try:
            while (data := finish(chunk())) is not None:
                yield data
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        finish(self.finish())


class AsyncBody(_Body):
    __slots__ = ()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunk = self._connection.chunk
        try:
            while (data := await chunk()) is not None:
                yield data
        except BaseException:
            await self.finish()
            raise

    async def aclose(self) -> None:
        await self.finish()


# --- sides -----------------------------------------------------------------------------------


class Sync:
    crew = Threads
    body = SyncBody
    wire = SyncWire
    event = threading.Event
    method = "handle_request"

    def loop(self) -> asyncio.AbstractEventLoop | None:
        return None

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - a coroutine in name only

    async def wait_for(self, mesh: Mesh, name: str, limit: float | None) -> ListenerView:
        return mesh.wait_for(name, limit)

    async def wait(self, event: Any, limit: float | None) -> None:
        event.wait(limit)

    async def send(self, handler: Any, request: Any) -> Any:
        return handler.handle_request(request)

    async def close(self, connection: Connection) -> None:
        await connection.close()

    def tracer(self, hook: Any, logger: logging.Logger) -> Tracer | None:
        """What reports the steps of an exchange; None when nobody listens."""
        debug = logger.isEnabledFor(logging.DEBUG)
        if hook is None and not debug:
            return None

        async def trace(name: str, info: dict[str, Any]) -> None:
            if hook is not None and inspect.iscoroutine(hook(name, info)):
                raise TypeError("the `trace` extension of a sync request must be a plain function")
            if debug:
                logger.debug("%s %s", name, info)

        return trace


class Async:
    """Under asyncio and trio."""

    crew = Tasks
    body = AsyncBody
    wire = AsyncWire
    event = anyio.Event
    method = "handle_async_request"

    def loop(self) -> asyncio.AbstractEventLoop | None:
        return asyncio._get_running_loop()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def wait_for(self, mesh: Mesh, name: str, limit: float | None) -> ListenerView:
        return await mesh.wait_for_async(name, limit)

    async def wait(self, event: Any, limit: float | None) -> None:
        with anyio.move_on_after(limit):
            await event.wait()

    async def send(self, handler: Any, request: Any) -> Any:
        return await handler.handle_async_request(request)

    async def close(self, connection: Connection) -> None:
        if connection.loop is self.loop():
            await connection.close()
        # else its loop is gone, or is not ours to enter; the socket goes with the object

    def tracer(self, hook: Any, logger: logging.Logger) -> Tracer | None:
        """What reports the steps of an exchange; None when nobody listens."""
        debug = logger.isEnabledFor(logging.DEBUG)
        if hook is None and not debug:
            return None

        async def trace(name: str, info: dict[str, Any]) -> None:
            if hook is not None:
                await hook(name, info)
            if debug:
                logger.debug("%s %s", name, info)

        return trace


Side = Sync | Async
