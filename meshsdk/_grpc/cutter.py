"""The route's timeout of a sync call whose request is a stream: it starts when the stream ends."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

from meshsdk._grpc.attempt import Limit


class Requests:
    """An iterator of requests that tells when it is exhausted."""

    def __init__(self, requests: Any, exhausted: Callable[[], None]) -> None:
        self._requests = requests
        self._exhausted = exhausted

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._requests)
        except StopIteration:
            self._exhausted()
            raise


class Cutter:
    """Cancels a call of grpc when the timeout of the route is over.

    The requests may end before grpc has returned the call; `_lock` guards which came first. It
    does not keep the call: one that the application drops is cancelled by grpc.
    """

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._call: weakref.ref[Any] | None = None
        self._requested = False

    def requested(self) -> None:
        """The last request was taken."""
        with self._lock:
            self._requested = True
            reference = self._call
        call = reference() if reference else None
        if call is not None:
            self._start(call)

    def watch(self, call: Any) -> None:
        with self._lock:
            self._call = weakref.ref(call)
            requested = self._requested
        if requested:
            self._start(call)

    def _start(self, call: Any) -> None:
        seconds = self._limit.of_request_end(monotonic())
        if seconds is None:
            return
        timer = threading.Timer(seconds, self._cut, (weakref.ref(call),))
        timer.daemon = True
        timer.name = "meshsdk-timeout"
        timer.start()
        if not call.add_callback(timer.cancel):
            timer.cancel()

    def _cut(self, reference: weakref.ref[Any]) -> None:
        call = reference()
        if call is None:
            return
        # Asking the call for its metadata would wait for it.
        if call._state.initial_metadata is not None:
            self._limit.answered = True
        self._limit.cut = True
        call.cancel()
