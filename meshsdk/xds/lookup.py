"""Looks up host names in threads of its own: `getaddrinfo` cannot be interrupted."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from meshsdk.model import DnsFamily
from meshsdk.xds.dns import Answer, Name

Resolve = Callable[[str, DnsFamily], tuple[Sequence[str], float | None]]
"""(host, family) → IP addresses in the order of preference, and their TTL in seconds or None.

A name that does not exist has no addresses; a lookup that failed raises `OSError`. Called in any
thread, several at a time."""

_THREADS: Final = 4
_FAMILIES: Final = {DnsFamily.V4_ONLY: socket.AF_INET, DnsFamily.V6_ONLY: socket.AF_INET6}
_NOTHING: Final = frozenset(
    getattr(socket, name)
    for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY")
    if hasattr(socket, name)
)


def system_resolve(host: str, family: DnsFamily) -> tuple[Sequence[str], float | None]:
    """The resolver of this machine: hosts file, search domains and all. It tells no TTL."""
    kind = _FAMILIES.get(family, socket.AF_UNSPEC)
    try:
        found = socket.getaddrinfo(host, None, kind, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
    except socket.gaierror as error:
        if error.errno in _NOTHING:
            return (), None
        raise
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found)), None


class Lookups:
    """At most four threads, which are there only while there is something to look up.

    `_lock` guards `_queue` and `_threads`.

    Args:
        report: told each outcome, in the thread that has it.
    """

    def __init__(self, resolve: Resolve, report: Callable[[Answer], None]) -> None:
        self._resolve = resolve
        self._report = report
        self._lock = threading.Lock()
        self._queue: deque[Name] = deque()
        self._threads = 0

    def start(self, names: Iterable[Name]) -> None:
        with self._lock:
            self._queue.extend(names)
            missing = min(len(self._queue), _THREADS) - self._threads
            self._threads += max(0, missing)
        for _ in range(missing):
            threading.Thread(target=self._run, name="meshsdk-dns", daemon=True).start()

    def close(self) -> None:
        """Begin nothing any more; waits for nothing."""
        with self._lock:
            self._queue.clear()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._threads -= 1
                    return
                name = self._queue.popleft()
            self._report(self._answer(name))

    def _answer(self, name: Name) -> Answer:
        try:
            addresses, ttl = self._resolve(name.host, name.dns.family)
            return Answer(name, tuple(addresses), ttl)
        except Exception as error:  # a resolver of the application may raise anything
            return Answer(name, None, error=getattr(error, "strerror", None) or repr(error))
