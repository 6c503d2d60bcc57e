"""A plain gRPC server whose every method asks on: sync, or asyncio with `aio` as argument."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from typing import Any

import grpc

from tests.support.echo_grpc import EchoRequest, EchoStub
from tests.support.proto import echo_pb2_grpc


class Asking(echo_pb2_grpc.EchoServicer):
    """Each call asks the next server once for its answer, a stream for each of its parts."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.next = EchoStub(channel)

    def Unary(self, request: Any, context: Any) -> Any:
        return self.next.Unary(request, timeout=10)

    def Down(self, request: Any, context: Any) -> Iterator[Any]:
        for _ in range(request.count):
            yield self.next.Unary(EchoRequest(text=request.text), timeout=10)

    def Up(self, request_iterator: Any, context: Any) -> Any:
        return self.next.Up(iter(list(request_iterator)), timeout=10)

    def Both(self, request_iterator: Any, context: Any) -> Iterator[Any]:
        for request in request_iterator:
            yield self.next.Unary(request, timeout=10)


class AskingAio(echo_pb2_grpc.EchoServicer):
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.next = EchoStub(channel)

    async def Unary(self, request: Any, context: Any) -> Any:
        return await self.next.Unary(request, timeout=10)

    async def Down(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for _ in range(request.count):
            yield await self.next.Unary(EchoRequest(text=request.text), timeout=10)

    async def Up(self, request_iterator: Any, context: Any) -> Any:
        requests = [request async for request in request_iterator]
        return await self.next.Up(iter(requests), timeout=10)

    async def Both(self, request_iterator: Any, context: Any) -> None:
        async for request in request_iterator:
            await context.write(await self.next.Unary(request, timeout=10))


def main() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(8))
    channel = grpc.insecure_channel(os.environ["TEST_NEXT"])
    echo_pb2_grpc.add_EchoServicer_to_server(Asking(channel), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


async def main_aio() -> None:
    server = grpc.aio.server()
    channel = grpc.aio.insecure_channel(os.environ["TEST_NEXT"])
    echo_pb2_grpc.add_EchoServicer_to_server(AskingAio(channel), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    if "aio" in sys.argv[1:]:
        asyncio.run(main_aio())
    else:
        main()
