"""Synchronous gRPC: `mesh.channel("reviews:9080")`, a `grpc.Channel` whose calls obey the mesh.

A multicallable picks an endpoint and calls the cached multicallable of that endpoint's own
channel, so calls, errors and futures are grpc's own. Where the mesh has to wait first (for
configuration, for an injected delay, for an endpoint under `wait_for_ready`), a blocking call
waits in the caller's thread and every other call becomes a `MeshCall` driven by a thread.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable
from random import random
from time import monotonic
from typing import Any, Self

import grpc

from meshsdk._grpc.attempt import Attempt, Limit
from meshsdk._grpc.calls import CHANNEL_CLOSED, MeshRpcError
from meshsdk._grpc.connectivity import POLL, Watcher, connectivity
from meshsdk._grpc.interceptor import Interceptor
from meshsdk._grpc.plan import Way, mutated
from meshsdk._grpc.pool import MeshLike, Options, Peer, Pool
from meshsdk._grpc.sync_method import Life, SyncMethod
from meshsdk._grpc.trip import Args, future, plain, state_of, with_call
from meshsdk._grpc.values import given_up, with_traces
from meshsdk.balancing import EndpointState
from meshsdk.call import Forward
from meshsdk.crew import Threads
from meshsdk.errors import ConnectFailure, MeshError, NoHealthyUpstream
from meshsdk.propagation import outgoing_metadata

__all__ = ["MeshChannel", "MeshRpcError", "client_interceptor"]


class _UnaryUnary(SyncMethod, grpc.UnaryUnaryMultiCallable):  # type: ignore[type-arg]
    factory = "unary_unary"
    unary_request = True
    blocking = True

    def __call__(
        self,
        request: Any,
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
        sent = metadata
        if way is None or wait_for_ready:
            sure = plan.table is not None and not wait_for_ready
            way = self.choose(plan, metadata, random) if sure else None
            if type(way) is not Way:
                args = Args(timeout, metadata, credentials, wait_for_ready, compression)
                return self._wait(plain, request, args, way)
            sent = mutated(way.forward, metadata)
        given = timeout
        if way.cap is None:
            began = 0.0 if timeout is None else monotonic()
        else:
            began = monotonic()
            timeout = way.within(timeout)
        try:
            endpoint = way.choose(random)
            endpoint.acquire()
        except NoHealthyUpstream as error:
            raise MeshRpcError(given_up(error, way.forward)) from error
        try:
            callable = way.lane.get(endpoint)
            if callable is None:
                callable = self._pool.line(self, way.forward, endpoint)
            return callable(request, timeout, sent, credentials, wait_for_ready, compression)
        except grpc.RpcError as error:
            self._look_at(error, way.forward, endpoint, Limit(given, way.forward, began))
        finally:
            endpoint.release()
            if self._pool.draining:
                self._pool.sweep()
        # Nothing was sent: the endpoint refused the connection. The careful way avoids it.
        if given is not None:
            given = max(0.0, given - (monotonic() - began))
        args = Args(given, metadata, credentials, wait_for_ready, compression)
        return self._wait(plain, request, args, way.forward)

    def _look_at(self, error: Any, forward: Forward, endpoint: EndpointState, limit: Limit) -> None:
        """Raise the error, unless the call may go to another endpoint."""
        attempt = Attempt(forward, endpoint, limit, self.is_down)
        code, details = error.code(), error.details()
        failure = attempt.failure(code, details, error.initial_metadata, monotonic())
        if failure is None:
            raise error from None
        if isinstance(failure.cause, ConnectFailure) and len(forward.cluster.endpoints) > 1:
            return
        raise MeshRpcError(failure) from failure.cause

    def with_call(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        args = Args(timeout, metadata, credentials, wait_for_ready, compression)
        return self._wait(with_call, request, args)

    def future(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        args = Args(timeout, metadata, credentials, wait_for_ready, compression)
        return self._launch(future, request, args)


class _StreamUnary(SyncMethod, grpc.StreamUnaryMultiCallable):  # type: ignore[type-arg]
    factory = "stream_unary"
    unary_request = False
    blocking = True

    def __call__(
        self,
        request_iterator: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        args = Args(timeout, metadata, credentials, wait_for_ready, compression)
        return self._wait(plain, request_iterator, args)

    def with_call(
        self,
        request_iterator: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        args = Args(timeout, metadata, credentials, wait_for_ready, compression)
        return self._wait(with_call, request_iterator, args)

    def future(
        self,
        request_iterator: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        args = Args(timeout, metadata, credentials, wait_for_ready, compression)
        return self._launch(future, request_iterator, args)


class _UnaryStream(SyncMethod, grpc.UnaryStreamMultiCallable):  # type: ignore[type-arg]
    factory = "unary_stream"
    unary_request = True
    blocking = False

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        args = Args(timeout, metadata, credentials, wait_for_ready, compression)
        return self._launch(plain, request, args)


class _StreamStream(SyncMethod, grpc.StreamStreamMultiCallable):  # type: ignore[type-arg]
    factory = "stream_stream"
    unary_request = False
    blocking = False

    def __call__(
        self,
        request_iterator: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        args = Args(timeout, metadata, credentials, wait_for_ready, compression)
        return self._launch(plain, request_iterator, args)


class _Dialer:
    """Opens grpc's own sync channels, without whatever instrumentation was patched over them."""

    def __init__(
        self, credentials: grpc.ChannelCredentials | None, compression: grpc.Compression | None
    ) -> None:
        self._credentials = credentials
        self._compression = compression

    def dial(
        self,
        target: str,
        options: Options,
        *,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> grpc.Channel:
        channel: grpc.Channel
        credentials = self._credentials or credentials
        if credentials is None:
            insecure = inspect.unwrap(grpc.insecure_channel)
            channel = insecure(target, options, self._compression)
        else:
            secure = inspect.unwrap(grpc.secure_channel)
            channel = secure(target, credentials, options, self._compression)
        return channel

    def close(self, channel: grpc.Channel) -> None:
        # Never here: closing waits for the channel's own thread, and this may be that thread,
        # telling that the last call is over.
        threading.Thread(target=channel.close, name="meshsdk-close", daemon=True).start()

    def line(self, peer: Peer, callable: Any) -> Any:
        return callable

    def crew(self, limit: int) -> Threads:
        return Threads(limit)

    def closed_error(self) -> Exception:
        return ValueError("Cannot invoke RPC on closed channel!")


class MeshChannel(grpc.Channel):
    """A channel to a service of the mesh; made by `Mesh.channel`.

    Args:
        target: as for `grpc.insecure_channel`. `host:port` (and `dns:///host:port`) names a
            service; targets by other schemes (`unix:`, `ipv4:`, `xds:`) go out past the mesh.
        options, compression: as for `grpc.insecure_channel`; they apply to every endpoint.
        credentials: the application's own TLS, to every endpoint; the certificate must bear the
            host of `target`. None is plain text.

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
    ) -> None:
        dialer = _Dialer(credentials, compression)
        self._pool = Pool(mesh, target, options or (), dialer, tls=credentials is not None)
        self._life = Life()
        self._parts = (self._pool, self._life)
        self._watcher = Watcher(self._connectivity)
        mesh.on_fork(self._forget)

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> grpc.UnaryUnaryMultiCallable[Any, Any]:
        codecs = (request_serializer, response_deserializer)
        return _UnaryUnary(*self._parts, method, *codecs, _registered_method)

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> grpc.UnaryStreamMultiCallable[Any, Any]:
        codecs = (request_serializer, response_deserializer)
        return _UnaryStream(*self._parts, method, *codecs, _registered_method)

    def stream_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> grpc.StreamUnaryMultiCallable[Any, Any]:
        codecs = (request_serializer, response_deserializer)
        return _StreamUnary(*self._parts, method, *codecs, _registered_method)

    def stream_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> grpc.StreamStreamMultiCallable[Any, Any]:
        codecs = (request_serializer, response_deserializer)
        return _StreamStream(*self._parts, method, *codecs, _registered_method)

    def subscribe(
        self,
        callback: Callable[[grpc.ChannelConnectivity], None],
        try_to_connect: bool | None = None,
    ) -> None:
        self._watcher.subscribe(callback, bool(try_to_connect))

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        self._watcher.unsubscribe(callback)

    def close(self) -> None:
        """End every call that is under way with CANCELLED; later calls raise ValueError."""
        self._watcher.clear()
        self._life.closing.set()
        channels = self._pool.close()
        for call in list(self._life.late):
            call.stop(CHANNEL_CLOSED)
        for channel in channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _connectivity(self, connect: bool) -> grpc.ChannelConnectivity:
        mesh, name = self._pool.mesh, self._pool.name
        if connect and self._pool.view(mesh.snapshot) is None and name:
            with contextlib.suppress(MeshError):
                mesh.wait_for(name, POLL)
        try:
            return connectivity(self._pool, state_of, connect=connect)
        except ValueError:  # closed meanwhile
            return grpc.ChannelConnectivity.SHUTDOWN

    def _forget(self) -> None:
        self._life.forget()
        self._watcher.forget()


def client_interceptor(
    mesh: MeshLike,
    target: str,
    options: Options | None = None,
    compression: grpc.Compression | None = None,
    credentials: grpc.ChannelCredentials | None = None,
) -> Interceptor:
    """An interceptor that sends the calls of a channel of your own through the mesh.

    Put it last in `grpc.intercept_channel`: interceptors after it are not asked. The channel's
    own connection stays unused; an interceptor cannot see the channel's target, so it is named
    here.

    Args:
        target, options, compression, credentials: as for `MeshChannel`.
    """
    return Interceptor(MeshChannel(mesh, target, options, compression, credentials))
