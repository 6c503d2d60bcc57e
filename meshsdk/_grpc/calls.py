"""Calls of the sync API that the mesh answers itself, starts later, or looks into."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any

import grpc

from meshsdk._grpc.attempt import Attempt
from meshsdk._grpc.values import Failure

_REPR = (
    '<{} of RPC that terminated with:\n\tstatus = {}\n\tdetails = "{}"\n'
    '\tdebug_error_string = "{}"\n>'
)
_CANCELLED = Failure(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")
CHANNEL_CLOSED = Failure(grpc.StatusCode.CANCELLED, "Channel closed!")


class MeshRpcError(grpc.RpcError, grpc.Call, grpc.Future):  # type: ignore[type-arg]
    """A call that the mesh ended: an error, a finished call and a future.

    Code and details are what Envoy answers. Why is in `__cause__`, the mesh's own error
    (`meshsdk.errors`) where there is one, and in `debug_error_string()`.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.details)
        self._failure = failure
        self.__cause__ = failure.cause

    def code(self) -> grpc.StatusCode:
        return self._failure.code

    def details(self) -> str:
        return self._failure.details

    def debug_error_string(self) -> str:
        return self._failure.debug

    def initial_metadata(self) -> Any:
        return tuple(self._failure.initial)

    def trailing_metadata(self) -> Any:
        return tuple(self._failure.trailing)

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> Any:
        return None

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return False

    def cancel(self) -> bool:
        return False

    def cancelled(self) -> bool:
        return False

    def running(self) -> bool:
        return False

    def done(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> Any:
        raise self

    def exception(self, timeout: float | None = None) -> MeshRpcError:
        return self

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        return _traceback_of(self)

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        fn(self)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        raise self

    next = __next__

    def __repr__(self) -> str:
        parts = (self.code(), self.details(), self.debug_error_string())
        return _REPR.format(type(self).__name__, *parts)

    __str__ = __repr__


def _traceback_of(error: BaseException) -> TracebackType | None:
    try:
        raise error
    except grpc.RpcError:
        return sys.exc_info()[2]


class MeshCall(grpc.RpcError, grpc.Call, grpc.Future):  # type: ignore[type-arg]
    """A call of grpc that starts later, or of whose answer or end the mesh makes something else.

    Like grpc's own call objects it is the error that it raises. `_inner` is the call of grpc, or
    a `MeshRpcError`, once there is one; `_condition` guards it, `_callbacks` and `_attempt`.
    """

    def __init__(
        self, ends: float | None = None, inner: Any = None, attempt: Attempt | None = None
    ) -> None:
        super().__init__()
        self.pause = threading.Event()
        """Set when the call is cancelled before it has begun."""
        self._watched = attempt
        self._failed: MeshRpcError | None = None
        self._ends = ends
        self._inner: Any = inner
        self._attempt: Any = None
        self._callbacks: list[Callable[[], None]] = []
        self._condition = threading.Condition()

    # --- for the driver ---

    def trying(self, attempt: Any) -> None:
        """`attempt` may become the call; until then it only has to follow a cancellation."""
        with self._condition:
            self._attempt = attempt
            cancelled = self.pause.is_set()
        if cancelled and attempt is not None:
            attempt.cancel()

    def watch(self, attempt: Attempt, inner: Any) -> None:
        """`inner`, which will be the call, is this attempt: it may end by the mesh."""
        self._watched = attempt

        def over() -> None:
            attempt.over(time.monotonic())

        if not inner.add_callback(over):
            over()

    def begin(self, inner: Any) -> bool:
        """The call is `inner` from now on; False when it was cancelled before."""
        with self._condition:
            if self._inner is not None:
                return False
            self._inner = inner
            if isinstance(inner, MeshRpcError):
                self._watched = None  # an attempt before it is not the end
            self.__cause__ = inner.__cause__ if isinstance(inner, BaseException) else None
            callbacks, self._callbacks = self._callbacks, []
            self._condition.notify_all()
        for callback in callbacks:
            if not inner.add_callback(callback):
                callback()
        return True

    # --- grpc.RpcContext and grpc.Call ---

    def _call(self, timeout: float | None = None) -> Any:
        """The inner call; waits for it."""
        if self._inner is None:
            with self._condition:
                if not self._condition.wait_for(lambda: self._inner is not None, timeout):
                    raise grpc.FutureTimeoutError
        return self._inner

    def _ended(self) -> Any:
        """The inner call, or what the mesh makes of its end; waits for the end."""
        inner = self._call()
        attempt = self._watched
        if attempt is None or self._failed is not None:
            return self._failed or inner
        code = inner.code()
        if code is grpc.StatusCode.OK:
            return inner
        failure = attempt.failure(code, inner.details(), inner.initial_metadata, time.monotonic())
        if failure is None:
            return inner
        self._failed = MeshRpcError(failure)
        self.__cause__ = failure.cause
        return self._failed

    def code(self) -> Any:
        return self._ended().code()

    def details(self) -> Any:
        return self._ended().details()

    def debug_error_string(self) -> Any:
        return self._ended().debug_error_string()

    def initial_metadata(self) -> Any:
        inner = self._call()
        metadata = inner.initial_metadata()
        if self._watched is None:
            return metadata
        if not metadata and inner.done() and (ended := self._ended()) is not inner:
            return ended.initial_metadata()
        return self._watched.initial(metadata)

    def trailing_metadata(self) -> Any:
        return self._ended().trailing_metadata()

    def is_active(self) -> bool:
        return self._inner is None or self._inner.is_active()

    def time_remaining(self) -> Any:
        if self._inner is not None:
            return self._inner.time_remaining()
        return None if self._ends is None else max(0.0, self._ends - time.monotonic())

    def add_callback(self, callback: Callable[[], None]) -> bool:
        with self._condition:
            if self._inner is None:
                self._callbacks.append(callback)
                return True
        return bool(self._inner.add_callback(callback))

    def cancel(self) -> bool:
        return self.stop(_CANCELLED)

    def stop(self, failure: Failure) -> bool:
        """Cancel, and if the call has not begun yet, end it in this way."""
        if self._inner is not None:
            return bool(self._inner.cancel())
        self.pause.set()
        with self._condition:
            attempt = self._attempt
        if attempt is not None:
            attempt.cancel()
        return self.begin(_Cancelled(failure)) or self.cancel()

    # --- grpc.Future ---

    def cancelled(self) -> bool:
        if self._inner is None or not self._inner.cancelled():
            return False
        return not self._was_cut

    @property
    def _was_cut(self) -> bool:
        """Whether it was the mesh that cancelled it."""
        return self._watched is not None and self._watched.limit.cut

    def running(self) -> bool:
        return self._inner is None or self._inner.running()

    def done(self) -> bool:
        return self._inner is not None and self._inner.done()

    def result(self, timeout: float | None = None) -> Any:
        began = time.monotonic()
        inner = self._call(timeout)
        try:
            return inner.result(_less(timeout, time.monotonic() - began))
        except grpc.FutureCancelledError:
            if not self._was_cut:
                raise
        except grpc.RpcError:
            pass
        raise self from self._ended().__cause__

    def exception(self, timeout: float | None = None) -> Any:
        began = time.monotonic()
        inner = self._call(timeout)
        try:
            error = inner.exception(_less(timeout, time.monotonic() - began))
        except grpc.FutureCancelledError:
            if not self._was_cut:
                raise
            error = inner
        if not isinstance(error, grpc.RpcError):
            return error
        self._ended()
        return self

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        return _traceback_of(self) if self.exception(timeout) is self else None

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        if not self.add_callback(partial(fn, self)):
            fn(self)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            response = next(self._call())
        except grpc.RpcError:
            raise self from self._ended().__cause__
        if self._watched is not None:
            self._watched.limit.answered = True
        return response

    next = __next__

    def __repr__(self) -> str:
        if self._inner is None:
            return f"<{type(self).__name__} object, not started>"
        return f"<{type(self).__name__} of {self._failed or self._inner!r}>"

    __str__ = __repr__


class _Cancelled(MeshRpcError):
    def cancelled(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> Any:
        raise grpc.FutureCancelledError

    exception = result
    traceback = result


def _less(timeout: float | None, spent: float) -> float | None:
    return None if timeout is None else max(0.0, timeout - spent)
