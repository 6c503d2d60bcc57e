"""gRPC servers: interceptors that carry trace headers, and servers that register themselves.

A server that the application makes itself takes `mesh.server_interceptor()` (sync) or
`mesh.aio_server_interceptor()`; `server(...)` and `aio_server(...)` are `grpc.server` and
`grpc.aio.server` with the interceptor in front, registered from `start()` until `stop()`.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from meshsdk.inbound import Inbound, Received
from meshsdk.propagation import Carried, serve
from meshsdk.serving import Port, Serving, numeric, termination

if TYPE_CHECKING:
    from meshsdk.mesh import Mesh

__all__ = ["AioServerInterceptor", "MeshServer", "ServerInterceptor", "aio_server", "server"]

Behavior = Callable[..., Any]

# After the drain, when the system is about to end the process: seconds for calls under way.
_FINISH_SECONDS = 5.0
_END = object()


# --- interceptors ----------------------------------------------------------------------------


class ServerInterceptor(grpc.ServerInterceptor):
    """Carries trace headers from each received call to the calls made while serving it.

    Put it first. It may serve any number of servers.

    Raises:
        ConfigurationError: `MESHSDK_PROPAGATE` is wrong.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._inbound = Inbound(environ)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        return _rewrapped(handler, _sync, _received(self._inbound, handler_call_details).carried)


class AioServerInterceptor(grpc.aio.ServerInterceptor):
    """`ServerInterceptor` for `grpc.aio.server`, whose handlers may be sync functions too."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._inbound = Inbound(environ)

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        return _rewrapped(handler, _any, _received(self._inbound, handler_call_details).carried)


def _received(inbound: Inbound, details: grpc.HandlerCallDetails) -> Received:
    return inbound.receive(details.invocation_metadata or ())


_FACTORIES = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


def _rewrapped(
    handler: grpc.RpcMethodHandler[Any, Any],
    wrap: Callable[[Behavior, bool, Carried], Behavior],
    carried: Carried,
) -> grpc.RpcMethodHandler[Any, Any]:
    """The same handler, its behaviour running in the context of the call."""
    attribute, make = _FACTORIES[handler.request_streaming, handler.response_streaming]
    behavior = wrap(getattr(handler, attribute), handler.response_streaming, carried)
    return make(
        behavior,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _sync(behavior: Behavior, streaming: bool, carried: Carried) -> Behavior:
    """Run in a context of its own: the pool's threads go from call to call and keep theirs."""

    def single(request: Any, context: grpc.ServicerContext) -> Any:
        own = contextvars.copy_context()
        own.run(serve, carried)
        return own.run(behavior, request, context)

    def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        own = contextvars.copy_context()
        own.run(serve, carried)
        return _steps(own, own.run(behavior, request, context))

    return stream if streaming else single


def _steps(own: contextvars.Context, responses: Any) -> Iterator[Any]:
    """Each step of the handler's generator in the call's context, its end too."""
    if responses is None:  # a handler that forgot to return: grpc reports it as it always does
        return
    iterator = iter(responses)
    try:
        while (response := own.run(next, iterator, _END)) is not _END:
            yield response
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            own.run(close)


def _any(behavior: Behavior, streaming: bool, carried: Carried) -> Behavior:
    """The kind of function (sync, coroutine, generator) stays: grpc.aio looks at it."""
    if inspect.isasyncgenfunction(behavior):

        async def stream(request: Any, context: Any) -> Any:
            serve(carried)  # a call is a task with a context of its own
            responses = behavior(request, context)
            try:
                async for response in responses:
                    yield response
            finally:
                await responses.aclose()

        return stream
    if inspect.iscoroutinefunction(behavior):

        async def single(request: Any, context: Any) -> Any:
            serve(carried)
            return await behavior(request, context)

        return single
    return _sync(behavior, streaming, carried)


# --- servers ---------------------------------------------------------------------------------


def server(
    thread_pool: Any,
    handlers: Any = None,
    interceptors: Any = None,
    options: Any = None,
    maximum_concurrent_rpcs: int | None = None,
    compression: grpc.Compression | None = None,
    *,
    mesh: Mesh | None = None,
) -> grpc.Server:
    """`grpc.server` in the mesh: it carries trace headers and is registered while it runs.

    Args:
        mesh: None for the mesh of the process. The others as `grpc.server`.

    Raises:
        ConfigurationError: a `MESHSDK_*` variable is wrong.
    """
    inner = inspect.unwrap(grpc.server)(
        thread_pool,
        handlers,
        (ServerInterceptor(), *(interceptors or ())),
        options,
        maximum_concurrent_rpcs,
        compression,
    )
    return MeshServer(inner, Serving(mesh, os.environ))


def aio_server(
    migration_thread_pool: Any = None,
    handlers: Any = None,
    interceptors: Any = None,
    options: Any = None,
    maximum_concurrent_rpcs: int | None = None,
    compression: grpc.Compression | None = None,
    *,
    mesh: Mesh | None = None,
) -> grpc.aio.Server:
    """`grpc.aio.server` in the mesh, as `server`."""
    inner = inspect.unwrap(grpc.aio.server)(
        migration_thread_pool,
        handlers,
        (AioServerInterceptor(), *(interceptors or ())),
        options,
        maximum_concurrent_rpcs,
        compression,
    )
    return AioMeshServer(inner, Serving(mesh, os.environ))


def port_of(address: str, number: int) -> Port | None:
    """The port that `add_insecure_port(address)` has opened; None for a Unix socket."""
    if address.startswith(("unix:", "unix-abstract:", "vsock:")):
        return None
    plain = address.removeprefix("dns:").removeprefix("ipv4:").removeprefix("ipv6:").lstrip("/")
    host = plain.rpartition(":")[0]
    return Port(number, "grpc", "grpc", numeric(host))


class _Ports:
    """What both flavours of server share: the ports that were opened, and who they are."""

    def __init__(self, inner: Any, serving: Serving) -> None:
        self._inner = inner
        self._serving = serving
        self._ports: list[Port] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Any) -> None:
        self._inner.add_generic_rpc_handlers(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        self._inner.add_registered_method_handlers(service_name, method_handlers)

    def add_insecure_port(self, address: str) -> int:
        return self._opened(address, self._inner.add_insecure_port(address))

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        return self._opened(address, self._inner.add_secure_port(address, server_credentials))

    def _opened(self, address: str, number: int) -> int:
        port = port_of(address.decode() if isinstance(address, bytes) else address, number)
        if port is not None:
            self._ports.append(port)
        return number


class MeshServer(_Ports, grpc.Server):
    """A sync server that is registered from `start()` until `stop()`.

    `stop(grace)` with a grace deregisters and drains first, in a thread; without one it
    deregisters and stops at once, as the caller wants.
    """

    def start(self) -> None:
        self._inner.start()
        self._serving.listening(*self._ports)
        termination.install(self._finish)

    def _finish(self) -> None:
        self._inner.stop(_FINISH_SECONDS).wait(_FINISH_SECONDS + 1)

    def stop(self, grace: float | None) -> threading.Event:
        if not self._serving.registered or not grace:
            self._serving.leave()
            return self._inner.stop(grace)  # type: ignore[no-any-return]
        stopped = threading.Event()

        def drain_and_stop() -> None:
            done = threading.Event()
            done.wait(min(self._serving.leave(), grace))
            self._inner.stop(grace).wait()
            stopped.set()

        threading.Thread(target=drain_and_stop, name="meshsdk-drain").start()
        return stopped

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        timed_out: bool = self._inner.wait_for_termination(timeout)
        if not timed_out:
            termination.hold()
        return timed_out


class AioMeshServer(_Ports, grpc.aio.Server):
    """An asyncio server that is registered from `start()` until `stop()`."""

    async def start(self) -> None:
        await self._inner.start()
        await asyncio.to_thread(self._serving.listening, *self._ports)
        loop = asyncio.get_running_loop()

        def finish() -> None:
            stopping = asyncio.run_coroutine_threadsafe(self._inner.stop(_FINISH_SECONDS), loop)
            stopping.result(_FINISH_SECONDS + 1)

        termination.install(finish)

    async def stop(self, grace: float | None) -> None:
        seconds = await asyncio.to_thread(self._serving.leave)
        if grace:
            await asyncio.sleep(min(seconds, grace))
        await self._inner.stop(grace)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        timed_out: bool = await self._inner.wait_for_termination(timeout)
        await asyncio.to_thread(termination.hold)
        return timed_out
