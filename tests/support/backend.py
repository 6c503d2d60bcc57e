"""A small gRPC server whose answer is its own name."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
from typing import Self

import grpc

METHOD = "/test.Echo/Who"


class Backend:
    """Answers every unary call with `name`, on a free port.

    Attributes:
        calls: how many calls it got.
    """

    def __init__(self, name: str, host: str = "127.0.0.1") -> None:
        self.name = name
        self.calls = 0
        self._server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[_Any(self._answer)])
        self.port = self._server.add_insecure_port(f"{host}:0")

    def _answer(self, _request: bytes, _context: grpc.ServicerContext) -> bytes:
        self.calls += 1
        return self.name.encode()

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.stop(None)


class _Any(grpc.GenericRpcHandler):
    def __init__(self, answer: Callable[[bytes, grpc.ServicerContext], bytes]) -> None:
        self._handler = grpc.unary_unary_rpc_method_handler(answer)

    def service(self, _details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return self._handler
