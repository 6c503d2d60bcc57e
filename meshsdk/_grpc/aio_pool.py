"""Channels of grpc.aio: they belong to an event loop, and are closed in it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import grpc.aio._channel

from meshsdk._grpc.pool import MeshLike, Options, Peer, Pool
from meshsdk.crew import Tasks
from meshsdk.model import Snapshot

READY: int = grpc.ChannelConnectivity.READY.value[0]
"""What the state of a `Line` is compared with."""


def working_loop() -> asyncio.AbstractEventLoop:
    """The loop that grpc.aio would use here."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.get_event_loop_policy().get_event_loop()


class Line:
    """One method on one endpoint."""

    __slots__ = ("call", "done", "state")

    def __init__(self, peer: Peer, callable: Any) -> None:
        self.call = callable
        # What `get_state` asks, without the look into a table of enum members.
        self.state: Callable[[bool], int] = peer.channel._channel.check_connectivity_state
        self.done = peer.done


class AioPool(Pool):
    """A pool whose channels live in one event loop: removals are brought there."""

    def __init__(self, mesh: MeshLike, target: str, options: Options, dialer: AioDialer) -> None:
        super().__init__(mesh, target, options, dialer, tls=dialer.tls)
        self._loop_of = dialer

    def updated(self, snapshot: Snapshot) -> None:
        loop = self._loop_of.loop
        if loop is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed, and its channels with it
            loop.call_soon_threadsafe(self.retire, snapshot)

    def forget(self) -> None:
        super().forget()
        self._loop_of.loop = None


class AioDialer:
    """Opens grpc's own aio channels, without whatever instrumentation was patched over them."""

    def __init__(
        self, credentials: grpc.ChannelCredentials | None, compression: grpc.Compression | None
    ) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.tls = credentials is not None
        self._credentials = credentials
        self._compression = compression
        self._closing: set[asyncio.Task[None]] = set()

    def dial(
        self, target: str, options: Options, interceptors: Any = None, *, credentials: Any = None
    ) -> Any:
        self.loop = working_loop()
        more = (options, self._compression, interceptors)
        credentials = self._credentials or credentials
        if credentials is None:
            return grpc.aio._channel.insecure_channel(target, *more)
        return grpc.aio._channel.secure_channel(target, credentials, *more)

    def close(self, channel: Any) -> None:
        assert self.loop is not None
        task = self.loop.create_task(channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def line(self, peer: Peer, callable: Any) -> Line:
        return Line(peer, callable)

    def crew(self, limit: int) -> Tasks:
        return Tasks(limit)

    def closed_error(self) -> Exception:
        return grpc.aio.UsageError("Channel is closed.")
