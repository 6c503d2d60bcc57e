"""Copies of calls for other clusters: sent beside the call, which they never slow or fail.

A copy is sent once the requests of the call are complete, as Envoy does; they are kept serialized
meanwhile, up to a limit. Its responses are read and thrown away.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from meshsdk._grpc.values import sendable
from meshsdk.call import Forward, Mirror

if TYPE_CHECKING:
    from meshsdk._grpc.plan import Method

_log = logging.getLogger("meshsdk.grpc")

MOST_BYTES = 1024 * 1024
"""Envoy's default buffer limit: longer requests are not copied."""
MOST_AT_A_TIME = 64
_LONGEST = 60.0
"""Seconds for a copy of a call whose route has no timeout."""


class Copier:
    """The copies of one call.

    Args:
        metadata: with which the call itself is sent.
    """

    def __init__(self, method: Method, forward: Forward, metadata: Any) -> None:
        self._method = method
        self._forward = forward
        self._metadata = tuple(metadata or ())
        self._requests: list[bytes] | None = []
        self._length = 0

    def add(self, request: Any) -> None:
        """The call has this request, and maybe more."""
        if self._requests is None:
            return
        try:
            data = self._method.serialized(request)
        except Exception:  # the call itself tells of it
            self._requests = None
            return
        self._length += len(data)
        self._requests.append(data)
        if self._length > MOST_BYTES:
            self._requests = None

    def complete(self) -> None:
        """The call has no more requests. Counts once."""
        requests, self._requests = self._requests, None
        if requests is None:
            return
        for mirror in self._forward.mirrors:
            if not self._method.crew.take(partial(self._send, mirror, requests)):
                _complain(mirror)

    def recorded(self, requests: Any) -> Any:
        """The requests of a call, sync or async, of which the copies learn."""
        if requests is None:
            return None  # they are written one by one
        return (
            self._async(requests) if isinstance(requests, AsyncIterable) else self._sync(requests)
        )

    def _sync(self, requests: Any) -> Iterator[Any]:
        for request in requests:
            self.add(request)
            yield request
        self.complete()

    async def _async(self, requests: Any) -> AsyncIterator[Any]:
        async for request in requests:
            self.add(request)
            yield request
        self.complete()

    async def _send(self, mirror: Mirror, requests: list[bytes]) -> None:
        """One copy, to the end of its responses."""
        with contextlib.suppress(Exception):  # whatever it is, nobody asked
            endpoint = mirror.pick(random.random)
            try:
                headers = mirror.request_headers(self._metadata)
                callable = self._method.copy_to(endpoint, mirror)
                timeout = self._forward.timeout or _LONGEST
                await self._method.drain(callable, requests, timeout, sendable(headers))
            finally:
                endpoint.release()
                self._method.swept()


_complained = False


def _complain(mirror: Mirror) -> None:
    global _complained
    if not _complained:
        _complained = True
        _log.warning(
            "cluster %s: copies of calls are left out, %d are under way already",
            mirror.cluster.cluster.name,
            MOST_AT_A_TIME,
        )


def copier_of(method: Method, forward: Forward, metadata: Any) -> Copier | None:
    """What takes the requests of a call that is about to be sent; None: there is no copy."""
    if not forward.mirrors or not forward.cluster.endpoints:
        return None
    return Copier(method, forward, metadata)
