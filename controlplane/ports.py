"""Whose port it is: the process that listens on one, from /proc (Linux)."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import socket
from typing import NamedTuple

from controlplane.model.hosts import with_port

ADDRESS_FLAG = "--address"
_EXAMPLES = "give one of this machine, such as 127.0.0.1, ::1 or 0.0.0.0"
_LISTEN = "0A"
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


class Owner(NamedTuple):
    """A process that listens."""

    pid: int
    command: str


class BadAddress(Exception):
    """An address or port that this process cannot listen on; the text says what to do."""


class PortTaken(Exception):
    """A port that is needed is not free; the text says who has it and what to do."""

    def __init__(self, host: str, port: int, flag: str) -> None:
        owner = owner_of(port)
        who = f"process {owner.pid} ({owner.command})" if owner else "another process"
        hint = f"stop it, or choose another port with {flag}"
        super().__init__(f"{with_port(host, port)} is taken by {who}: {hint}")
        self.port = port
        self.owner = owner


def claim(host: str, port: int, flag: str) -> socket.socket:
    """A bound socket, not listening yet; port 0 takes a free one.

    Raises:
        PortTaken: somebody listens there.
        BadAddress: the address cannot be bound for another reason.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE and port and _listens(host, port, family):
            raise PortTaken(host, port, flag) from None
        if error.errno == errno.EACCES:
            text = f"{flag} {port}: {error.strerror}: choose a port above 1023"
        else:
            text = f"{ADDRESS_FLAG} {host}: {error.strerror}: {_EXAMPLES}"
        raise BadAddress(text) from None
    return bound


def _listens(host: str, port: int, family: int) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0 or owner_of(port) is not None


def owner_of(port: int) -> Owner | None:
    """The process that listens on a TCP port; None when it cannot be seen."""
    inodes = {inode for table in _TABLES for inode in _listening(table, port)}
    if not inodes:
        return None
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(_inode(link) in inodes for link in (entry / "fd").iterdir()):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                return Owner(int(entry.name), " ".join(filter(None, words)) or "?")
    return None


def _inode(link: pathlib.Path) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(link).removeprefix("socket:[").removesuffix("]")
    return ""


def _listening(table: str, port: int) -> list[str]:
    try:
        lines = pathlib.Path(table).read_text().splitlines()[1:]
    except OSError:
        return []
    rows = [line.split() for line in lines]
    return [
        row[9] for row in rows if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port
    ]
