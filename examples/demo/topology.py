"""Which programs the demo runs, and at which addresses."""

from __future__ import annotations

import socket
from dataclasses import dataclass

HOME = "west/zone-1"
CLIENT_ADDRESS = "127.0.0.8"
CONTROL_PLANE_ADDRESS = "127.0.0.9"


@dataclass(frozen=True, slots=True)
class Program:
    """One program of the demo; a process of it may be replaced by another one.

    Attributes:
        name: how the demo's table calls it.
        module: what `python -m` runs.
        address: the loopback address of its own.
        port: the port that it takes when nobody else has it.
        group: the WorkloadGroup that it registers with; empty when its address is written in a
            ServiceEntry instead.
        grpc: it serves gRPC on a second port.
    """

    name: str
    module: str
    service: str
    version: str
    address: str
    port: int = 9080
    group: str = ""
    locality: str = HOME
    grpc: bool = False

    def command(self, address: str, port: int, grpc_port: int) -> list[str]:
        """The arguments after `python -m`."""
        given = [self.module]
        if self.module.endswith(".echo"):
            given += ["--service", self.service]
        given += ["--version", self.version, "--address", address, "--port", str(port)]
        return [*given, "--grpc-port", str(grpc_port)] if self.grpc else given


def _bookinfo(service: str, version: str, address: str, *, grpc: bool = False) -> Program:
    name = f"{service}-{version}"
    module = f"examples.bookinfo.{service}"
    return Program(name, module, service, version, address, group=name, grpc=grpc)


def _echo(service: str, version: str, address: str) -> Program:
    name = f"{service}-{version}"
    return Program(name, "examples.demo.echo", service, version, address, 8080, group=name)


def _east(version: str, address: str, locality: str) -> Program:
    module = "examples.bookinfo.reviews"
    return Program(f"east-{version}", module, "reviews", version, address, locality=locality)


PROGRAMS = (
    _bookinfo("productpage", "v1", "127.0.0.10"),
    _bookinfo("details", "v1", "127.0.0.11"),
    _bookinfo("reviews", "v1", "127.0.0.12"),
    _bookinfo("reviews", "v2", "127.0.0.13"),
    _bookinfo("reviews", "v3", "127.0.0.14"),
    _bookinfo("ratings", "v1", "127.0.0.15", grpc=True),
    _echo("my-app", "v1", "127.0.0.16"),
    _echo("my-app", "v2", "127.0.0.17"),
    _echo("store", "v1", "127.0.0.18"),
    _east("v1", "127.0.0.21", "east/zone-1"),
    _east("v2", "127.0.0.22", "east/zone-2"),
)


class Places:
    """Hands out addresses that can be bound, and ports that nobody listens on, none of them twice.

    Ports lie below the range from which systems take the ports of outgoing connections, so that
    none is taken between the choice and its use, nor while a process is restarted.

    Args:
        one_address: take 127.0.0.1 for everything, as where no other one can be bound.
    """

    def __init__(self, *, one_address: bool = False) -> None:
        self._one_address = one_address
        self._given: set[tuple[str, int]] = set()

    def address(self, wanted: str) -> str:
        """`wanted`, or 127.0.0.1 where only that one exists."""
        return wanted if not self._one_address and _free(wanted, 0) else "127.0.0.1"

    def port(self, address: str, wanted: int) -> int:
        """`wanted`, or the next one that is free at `address`.

        Raises:
            OSError: none is.
        """
        for number in range(wanted, 32000, 7):
            if (address, number) not in self._given and _free(address, number):
                self._given.add((address, number))
                return number
        raise OSError(f"no port from {wanted} on is free at {address}")


def _free(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
