"""Asynchronous gRPC: `mesh.aio_channel("reviews:9080")`, a `grpc.aio.Channel` that obeys the mesh.

A multicallable picks an endpoint and calls the cached multicallable of that endpoint's own
channel, so calls are grpc's own. Where the mesh has to wait first (for configuration, for an
injected delay, for a connection that may fail over to another endpoint), or has to look at the
answer, the call is a `MeshCall` that a task drives.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Sequence
from random import random
from time import monotonic
from typing import Any, Self

import grpc
import grpc.aio

from meshsdk._grpc import aio_calls
from meshsdk._grpc.aio_calls import MeshCall
from meshsdk._grpc.aio_method import AioMethod
from meshsdk._grpc.aio_pool import READY, AioDialer, AioPool
from meshsdk._grpc.aio_trip import Trip
from meshsdk._grpc.attempt import Attempt, Limit
from meshsdk._grpc.codecs import Routed
from meshsdk._grpc.connectivity import POLL, connectivity
from meshsdk._grpc.plan import Way, mutated
from meshsdk._grpc.pool import MeshLike, Options
from meshsdk._grpc.values import with_traces
from meshsdk.errors import MeshError, NoHealthyUpstream
from meshsdk.propagation import outgoing_metadata

__all__ = ["MeshAioChannel", "client_interceptors"]

_READY = grpc.ChannelConnectivity.READY


class _UnaryUnary(AioMethod, grpc.aio.UnaryUnaryMultiCallable):  # type: ignore[type-arg]
    factory = "unary_unary"
    unary_request = True
    late_call = aio_calls.UnaryUnary

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        # The hot path: every line of it is measured (bench/grpc_paired.py).
        plan = self._plan
        if plan.snapshot is not self._mesh.snapshot:
            plan = self.refresh()
        traces = outgoing_metadata()
        if traces and not plan.raw:
            metadata = with_traces(metadata, traces)
        way: Any = plan.way
        if way is None or wait_for_ready:
            sure = plan.table is not None and not wait_for_ready
            way = self.choose(plan, metadata, random) if sure else None
            if type(way) is not Way:
                rest = (metadata, credentials, wait_for_ready, compression)
                return self._start(request, timeout, *rest, decision=way)
        try:
            endpoint = way.choose(random)
            endpoint.acquire()
        except NoHealthyUpstream:
            rest = (metadata, credentials, wait_for_ready, compression)
            return self._start(request, timeout, *rest, decision=way.forward)
        line = way.lane.get(endpoint)
        if line is None or line.state(False) != READY:
            rest = (metadata, credentials, wait_for_ready, compression)
            trip = Trip(self, request, timeout, *rest, decision=way.forward, chosen=endpoint)
            return self._late(trip)
        if way.forward.changes_request:
            metadata = mutated(way.forward, metadata)
        limit = None
        if way.cap is not None and (timeout is None or timeout > way.cap):
            limit = Limit(timeout, way.forward, monotonic())
            timeout = way.within(timeout)
        try:
            call = line.call(
                request,
                timeout=timeout,
                metadata=metadata,
                credentials=credentials,
                wait_for_ready=wait_for_ready,
                compression=compression,
            )
        except BaseException:
            endpoint.release()
            raise
        call.add_done_callback(line.done)
        if limit is not None:
            return aio_calls.watched(call, Attempt(way.forward, endpoint, limit, None))
        return call


class _UnaryStream(AioMethod, grpc.aio.UnaryStreamMultiCallable):  # type: ignore[type-arg]
    factory = "unary_stream"
    unary_request = True
    late_call = aio_calls.UnaryStream

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._start(request, timeout, metadata, credentials, wait_for_ready, compression)


class _StreamUnary(AioMethod, grpc.aio.StreamUnaryMultiCallable):  # type: ignore[type-arg]
    factory = "stream_unary"
    unary_request = False
    late_call = aio_calls.StreamUnary

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        rest = (metadata, credentials, wait_for_ready, compression)
        return self._start(request_iterator, timeout, *rest)


class _StreamStream(AioMethod, grpc.aio.StreamStreamMultiCallable):  # type: ignore[type-arg]
    factory = "stream_stream"
    unary_request = False
    late_call = aio_calls.StreamStream

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        rest = (metadata, credentials, wait_for_ready, compression)
        return self._start(request_iterator, timeout, *rest)


_KINDS: dict[str, Any] = {
    kind.factory: kind for kind in (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)
}


class MeshAioChannel(grpc.aio.Channel):
    """An aio channel to a service of the mesh; made by `Mesh.aio_channel`.

    Args:
        target: as for `grpc.aio.insecure_channel`. `host:port` (and `dns:///host:port`) names a
            service; targets by other schemes (`unix:`, `ipv4:`, `xds:`) go out past the mesh.
        options, compression: as for `grpc.aio.insecure_channel`; they apply to every endpoint.
        credentials: the application's own TLS, to every endpoint; the certificate must bear the
            host of `target`. None is plain text.
        interceptors: grpc.aio client interceptors; they run once per call, before the mesh.

    Calls wait for their configuration until their deadline and then fail with DEADLINE_EXCEEDED
    (UNAVAILABLE if the mesh gives up before), `meshsdk.errors.NotReady` as the cause.
    """

    def __init__(
        self,
        mesh: MeshLike,
        target: str,
        options: Options | None = None,
        compression: grpc.Compression | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None,
    ) -> None:
        dialer = AioDialer(credentials, compression)
        self._pool = AioPool(mesh, target, options or (), dialer)
        self._late: weakref.WeakSet[MeshCall] = weakref.WeakSet()
        self._asking: asyncio.Task[None] | None = None
        self._shell: Any = None
        if interceptors:
            # grpc's own calls under interceptors, in a channel that never connects: the last
            # interceptor hands the call to this one.
            chain = (*interceptors, *_interceptors(self))
            self._shell = dialer.dial(target, options or (), chain)

    def _method(self, factory: str, method: str, codecs: Any, registered: bool | None) -> Any:
        if self._shell is not None:
            return getattr(self._shell, factory)(method, *codecs, _registered_method=registered)
        return self._mesh_method(factory, method, codecs, registered)

    def _mesh_method(self, factory: str, method: str, codecs: Any, registered: bool | None) -> Any:
        return _KINDS[factory](self._pool, self._late, method, *codecs, registered)

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        codecs = (request_serializer, response_deserializer)
        return self._method("unary_unary", method, codecs, _registered_method)

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        codecs = (request_serializer, response_deserializer)
        return self._method("unary_stream", method, codecs, _registered_method)

    def stream_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        codecs = (request_serializer, response_deserializer)
        return self._method("stream_unary", method, codecs, _registered_method)

    def stream_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        codecs = (request_serializer, response_deserializer)
        return self._method("stream_stream", method, codecs, _registered_method)

    # --- life ---

    async def close(self, grace: float | None = None) -> None:
        """Refuse new calls, let those under way go on for `grace` seconds, then cancel them.

        Calls that still wait, for configuration or an injected delay, are cancelled at once.
        """
        if grace and grace < 0:
            raise ValueError(f"grace must be non-negative, got {grace}.")
        channels = self._pool.close()
        if self._shell is not None:
            channels.append(self._shell)
        late = list(self._late)
        for call in late:
            if call.waits:
                call.cancel()
        await asyncio.gather(*(channel.close(grace) for channel in channels))
        tasks = [task for call in late if (task := call.beginning)]
        if tasks:
            await asyncio.wait(tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # --- connectivity ---

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        mesh, name = self._pool.mesh, self._pool.name
        if try_to_connect and name and self._pool.view(mesh.snapshot) is None and not self._asking:
            self._asking = asyncio.ensure_future(self._ask(name))
        return connectivity(
            self._pool, lambda channel, connect: channel.get_state(connect), connect=try_to_connect
        )

    async def _ask(self, name: str) -> None:
        with contextlib.suppress(MeshError):
            await self._pool.mesh.wait_for_async(name, None)
        self._asking = None

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        self._pool.check_open()
        # The sum of many channels' states and of the configuration: looked at, as grpc's own sync
        # channels do, instead of a watcher for each.
        while self.get_state() is last_observed_state:  # noqa: ASYNC110
            await asyncio.sleep(POLL)

    async def channel_ready(self) -> None:
        state = self.get_state(try_to_connect=True)
        while state is not _READY:
            await asyncio.sleep(POLL)
            self._pool.check_open()
            state = self.get_state(try_to_connect=True)


# --- interceptors ----------------------------------------------------------------------------


class _Interceptor:
    """Sends intercepted calls to a mesh channel instead of the channel that they were made on."""

    def __init__(self, channel: MeshAioChannel) -> None:
        self._routed = Routed(
            lambda factory, path, codecs: channel._mesh_method(factory, path, codecs, False)
        )

    def _send(self, factory: str, continuation: Any, details: Any, request: Any) -> Any:
        method = self._routed.method(factory, details.method, continuation)
        return method(
            request,
            timeout=details.timeout,
            metadata=details.metadata,
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
        )


class _UnaryUnaryInterceptor(_Interceptor, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        return self._send("unary_unary", continuation, client_call_details, request)


class _UnaryStreamInterceptor(_Interceptor, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        return self._send("unary_stream", continuation, client_call_details, request)


class _StreamUnaryInterceptor(_Interceptor, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return self._send("stream_unary", continuation, client_call_details, request_iterator)


class _StreamStreamInterceptor(_Interceptor, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return self._send("stream_stream", continuation, client_call_details, request_iterator)


def _interceptors(channel: MeshAioChannel) -> list[grpc.aio.ClientInterceptor]:
    # grpc takes an interceptor for one arity only, so there are four.
    return [
        _UnaryUnaryInterceptor(channel),
        _UnaryStreamInterceptor(channel),
        _StreamUnaryInterceptor(channel),
        _StreamStreamInterceptor(channel),
    ]


def client_interceptors(
    mesh: MeshLike,
    target: str,
    options: Options | None = None,
    compression: grpc.Compression | None = None,
    credentials: grpc.ChannelCredentials | None = None,
) -> list[grpc.aio.ClientInterceptor]:
    """Interceptors that send the calls of a channel of your own through the mesh.

    Put them last: interceptors after them are not asked. The channel's own connection stays
    unused; an interceptor cannot see the channel's target, so it is named here.

    Args:
        target, options, compression, credentials: as for `MeshAioChannel`.
    """
    return _interceptors(MeshAioChannel(mesh, target, options, compression, credentials))
