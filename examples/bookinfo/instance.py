"""Who a process is, and how it says so: every answer names the process that gave it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

HEADER = "x-served-by"


@dataclass(frozen=True, slots=True)
class Instance:
    """One process of one version of one service."""

    service: str
    version: str
    address: str
    port: int
    grpc_port: int = 0

    @property
    def name(self) -> str:
        return f"{self.service}-{self.version}"

    @property
    def served_by(self) -> str:
        """`reviews-v2; address=127.0.0.13:9080; pid=4711`."""
        return f"{self.name}; address={self.address}:{self.port}; pid={os.getpid()}"


def arguments(
    service: str,
    *,
    versions: Iterable[str] = ("v1",),
    port: int = 9080,
    grpc_port: int = 0,
    argv: list[str] | None = None,
) -> Instance:
    """The instance that the command line describes.

    Args:
        versions: what `--version` may be; the first is the default.
        port, grpc_port: the defaults; without `grpc_port` the service speaks HTTP alone.
    """
    known = list(versions)
    parser = argparse.ArgumentParser(prog=f"examples.bookinfo.{service}")
    parser.add_argument("--version", default=known[0], choices=known)
    parser.add_argument("--address", default="127.0.0.1", help="IP address to listen on")
    parser.add_argument("--port", type=int, default=port, help="port for HTTP")
    if grpc_port:
        parser.add_argument("--grpc-port", type=int, default=grpc_port, help="port for gRPC")
    given = parser.parse_args(argv)
    return Instance(
        service, given.version, given.address, given.port, getattr(given, "grpc_port", 0)
    )


Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
AsgiApp = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


def naming(app: AsgiApp, instance: Instance) -> AsgiApp:
    """ASGI middleware: each response carries `x-served-by`, errors too."""

    async def named(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return

        async def send_named(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                header = (HEADER.encode(), instance.served_by.encode())
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        await app(scope, receive, send_named)

    return named
