"""A small gRPC server with all four arities, which says what it received and who it is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, Self

import grpc

from tests.support.proto import echo_pb2, echo_pb2_grpc

CODES = {code.value[0]: code for code in grpc.StatusCode}

EchoReply = echo_pb2.EchoReply
EchoRequest = echo_pb2.EchoRequest
EchoStub = echo_pb2_grpc.EchoStub


class _Servicer(echo_pb2_grpc.EchoServicer):
    def __init__(self, server: EchoServer) -> None:
        self._server = server

    def _begin(self, context: Any) -> None:
        self._server.calls += 1
        self._server.peers.add(context.peer())
        self._server.authorities.add(context._rpc_event.call_details.host.decode())
        if self._server.before is not None:
            self._server.before()
        if self._server.early:
            context.send_initial_metadata((("x-server", self._server.name), ("x-who", "server")))
        context.set_trailing_metadata((("x-trailing", "bye"), ("x-bytes-bin", b"\x00\xff")))

    def _answer(self, text: str, context: Any) -> Any:
        event = context._rpc_event
        reply = EchoReply(
            text=text,
            server=self._server.name,
            authority=event.call_details.host.decode(),
            method=event.call_details.method.decode(),
        )
        for name, value in context.invocation_metadata():
            raw = value if isinstance(value, bytes) else value.encode()
            reply.metadata.add(name=name, value=raw)
        return reply

    def _end(self, request: Any, context: Any) -> None:
        if request.code:
            context.abort(CODES[request.code], request.details)

    def Unary(self, request: Any, context: Any) -> Any:
        self._begin(context)
        self._server.received.append([request.text])
        time.sleep(request.delay)
        self._end(request, context)
        return self._answer(request.text, context)

    def Down(self, request: Any, context: Any) -> Iterator[Any]:
        self._begin(context)
        self._server.received.append([request.text])
        for number in range(request.count):
            time.sleep(request.delay)
            yield self._answer(f"{request.text}{number}", context)
        self._end(request, context)

    def Up(self, request_iterator: Any, context: Any) -> Any:
        self._begin(context)
        texts = []
        delay = 0.0
        for request in request_iterator:
            texts.append(request.text)
            delay = request.delay
            self._end(request, context)
        self._server.received.append(texts)
        time.sleep(delay)
        return self._answer(",".join(texts), context)

    def Both(self, request_iterator: Any, context: Any) -> Iterator[Any]:
        self._begin(context)
        texts = []
        for request in request_iterator:
            texts.append(request.text)
            time.sleep(request.delay)
            self._end(request, context)
            yield self._answer(request.text, context)
        self._server.received.append(texts)


class _Unregistered:
    """A server for `add_..._to_server` whose calls still know their method and authority."""

    def __init__(self, server: grpc.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        pass


class EchoServer:
    """An echo server on loopback.

    Args:
        early: send metadata as soon as a call arrives; if not, no sooner than the first answer.

    Attributes:
        calls: how many calls have arrived. peers: the connections that they came by.
        authorities: under which hosts. received: the texts of each call that was read whole.
        before: done first in every call.
    """

    def __init__(
        self,
        name: str = "echo",
        *,
        address: str = "127.0.0.1:0",
        early: bool = True,
        credentials: grpc.ServerCredentials | None = None,
        before: Callable[[], object] | None = None,
        **options: Any,
    ) -> None:
        self.name = name
        self.early = early
        self.calls = 0
        self.peers: set[str] = set()
        self.authorities: set[str] = set()
        self.received: list[list[str]] = []
        self.before = before
        self._server = grpc.server(
            futures.ThreadPoolExecutor(32),
            options=[("grpc.so_reuseport", 0)],
            **options,
        )
        echo_pb2_grpc.add_EchoServicer_to_server(_Servicer(self), _Unregistered(self._server))
        self._generic()
        self.port = (
            self._server.add_secure_port(address, credentials)
            if credentials
            else self._server.add_insecure_port(address)
        )
        self._server.start()

    def _generic(self) -> None:
        """The unary method under other names too: for rewritten paths."""

        class Handler(grpc.GenericRpcHandler):
            def service(inner, details: Any) -> Any:  # noqa: N805
                if not details.method.startswith("/moved."):
                    return None
                return grpc.unary_unary_rpc_method_handler(
                    _Servicer(self).Unary, EchoRequest.FromString, EchoReply.SerializeToString
                )

        self._server.add_generic_rpc_handlers((Handler(),))

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self, grace: float | None = None) -> None:
        self._server.stop(grace).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


@contextlib.contextmanager
def servers(*names: str) -> Iterator[dict[str, EchoServer]]:
    """One echo server per name."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(EchoServer(name)) for name in names}
