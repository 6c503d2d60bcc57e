"""Copies of requests for other clusters: sent beside the call, which they never slow or fail.

A copy is sent once its body is complete, as Envoy does: a body in memory is, any other is recorded
while the request itself is sent, up to a limit. Copies have connections of their own, so that they
do not take those of the client. What becomes of a copy nobody learns.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

from meshsdk._httpx.exchange import RawHeaders, raw, text, with_host
from meshsdk._httpx.library import Library
from meshsdk._httpx.sender import Sender
from meshsdk._httpx.sides import Side
from meshsdk._httpx.trip import Trip
from meshsdk.call import Forward, Mirror

_log = logging.getLogger("meshsdk.httpx")
_draw = random.random

MOST_BYTES = 1024 * 1024
"""Envoy's default buffer limit: a longer body is not copied."""
MOST_AT_A_TIME = 64
_LONGEST = 60.0
"""Seconds for a copy of a call whose route has no timeout."""


class Mirrors:
    """The copies of one client's requests.

    Args:
        inner: httpcore's pool whose options the connections get.
    """

    def __init__(self, side: Side, library: Library, inner: Any) -> None:
        self._side = side
        self._library = library
        self._inner = inner
        self._sender: Sender | None = None
        self._complained = False
        self.crew = side.crew(MOST_AT_A_TIME)

    def copy(self, request: Any, forward: Forward) -> None:
        """Send the copies of a request that is about to be sent; may replace its body."""
        if not forward.cluster.endpoints:
            return  # the call itself goes nowhere
        parts = request.method, request.url, list(request.headers)
        if isinstance(request.stream, self._library.httpx.ByteStream):
            self._start(forward, parts, b"".join(request.stream))
            return

        def complete(body: bytes) -> None:
            self._start(forward, parts, body)

        kind = _Recorder if hasattr(request.stream, "__iter__") else _AsyncRecorder
        request.stream = kind(request.stream, complete)

    def _start(self, forward: Forward, parts: tuple[bytes, Any, RawHeaders], body: bytes) -> None:
        for mirror in forward.mirrors:
            request = self._request(mirror, parts, body)
            if not self.crew.take(partial(self._send, mirror, request, forward)):
                self._complain(mirror)

    def _request(self, mirror: Mirror, parts: tuple[bytes, Any, RawHeaders], body: bytes) -> Any:
        method, url, headers = parts
        changed = mirror.request_headers(
            [(text(k).lower(), text(v)) for k, v in headers if k.lower() != b"host"]
        )
        core = self._library.core
        return core.Request(
            method,
            core.URL(scheme=b"http", host=url.host, port=url.port, target=raw(mirror.path)),
            headers=with_host([(raw(k), raw(v)) for k, v in changed], mirror.authority),
            content=self._library.httpx.ByteStream(body),
            extensions={},
        )

    async def _send(self, mirror: Mirror, request: Any, forward: Forward) -> None:
        """One copy, to the end of its answer."""
        if self._sender is None:
            self._sender = Sender(self._side, self._library, self._inner)
        trip = Trip(
            mirror.cluster,
            forward.route.name,
            {},
            timeout=forward.timeout or _LONGEST,
            host=mirror.authority,
            key=mirror.key,
        )
        with contextlib.suppress(Exception):  # whatever it is, nobody asked
            response = await self._sender.send(request, trip)
            await response.stream.discard()

    def _complain(self, mirror: Mirror) -> None:
        if not self._complained:
            self._complained = True
            _log.warning(
                "cluster %s: copies of requests are left out, %d are under way already",
                mirror.cluster.cluster.name,
                MOST_AT_A_TIME,
            )

    # --- life ---

    def retire(self, live: frozenset[str]) -> None:
        if self._sender is not None:
            self._sender.connections.retire(live)

    def forget(self) -> None:
        """In a forked child."""
        self._sender = None
        self.crew = self._side.crew(MOST_AT_A_TIME)

    async def close(self) -> None:
        await self.crew.stop()
        if self._sender is not None:
            await self._sender.close()


# --- bodies that are made while they are sent --------------------------------------------------


class _Record:
    def __init__(self, stream: Any, complete: Callable[[bytes], None]) -> None:
        self._stream = stream
        self._complete = complete
        self._parts: list[bytes] | None = []
        self._length = 0

    def _keep(self, chunk: bytes) -> None:
        if self._parts is None:
            return
        self._length += len(chunk)
        self._parts.append(chunk)
        if self._length > MOST_BYTES:
            self._parts = None

    def _end(self) -> None:
        if self._parts is not None:
            self._complete(b"".join(self._parts))


class _Recorder(_Record):
    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._keep(chunk)
            yield chunk
        self._end()


class _AsyncRecorder(_Record):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._keep(chunk)
            yield chunk
        self._end()
