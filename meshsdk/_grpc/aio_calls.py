"""Calls of the aio API that the mesh answers itself, starts later, or looks into.

Each is a subclass of grpc's own abstract call: an aio interceptor takes anything else for the
response. A task brings the call of grpc (`inner`); everything else is handed on to it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator
from functools import partial
from typing import Any, Protocol

import grpc
import grpc.aio

from meshsdk._grpc.attempt import Attempt
from meshsdk._grpc.values import Failure

_CANCELLED = Failure(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")
_FINISHED = "RPC already finished."


def rpc_error(failure: Failure) -> grpc.aio.AioRpcError:
    error = grpc.aio.AioRpcError(
        failure.code,
        grpc.aio.Metadata(*failure.initial),
        grpc.aio.Metadata(*failure.trailing),
        details=failure.details,
        debug_error_string=failure.debug,
    )
    error.__cause__ = failure.cause
    return error


class TripLike(Protocol):
    """What a call asks of the trip that brings it."""

    attempt: Attempt | None
    """None until there has been one."""
    ends: float | None
    """`time.monotonic()` of the caller's deadline."""

    def wrote(self, request: Any) -> None:
        """A request was written."""

    def requested(self) -> None:
        """The last request was written."""


class Started:
    """A call of grpc that has been started: a trip that is over, and the task of it."""

    __slots__ = ("_call", "attempt", "ends")

    def __init__(self, call: Any, attempt: Attempt | None) -> None:
        self._call = call
        self.attempt = attempt
        self.ends: float | None = None

    def wrote(self, request: Any) -> None: ...

    def requested(self) -> None: ...

    def done(self) -> bool:
        return True

    def cancelled(self) -> bool:
        return False

    def result(self) -> Any:
        return self._call

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Only who has called `MeshCall.add_done_callback` before is told: nobody yet."""


def watched(call: Any, attempt: Attempt) -> UnaryUnary:
    """A call that was sent at once, whose end is looked into."""
    call.add_done_callback(lambda _: attempt.over(time.monotonic()))
    started = Started(call, attempt)
    return UnaryUnary(started, started)


class MeshCall:
    """A call of grpc that starts later, or of whose answer or end the mesh makes something else.

    Touched by its event loop only.

    Args:
        outcome: brings the call of grpc, or a `Failure` if the mesh ended it, or the exception
            that making the call raised.
    """

    _failed: Failure | None = None

    def __init__(self, outcome: asyncio.Task[Any] | Started, trip: TripLike) -> None:
        self._task: Any = outcome
        self._trip = trip
        self._callbacks: list[Callable[[Any], None]] = []
        outcome.add_done_callback(self._begun)

    @property
    def waits(self) -> bool:
        """Whether nothing was sent yet."""
        return not self._task.done() and self._trip.attempt is None

    @property
    def beginning(self) -> asyncio.Task[Any] | None:
        """The task that brings the call of grpc, until it has."""
        return None if self._task.done() else self._task

    def _begun(self, task: asyncio.Task[Any]) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self.add_done_callback(callback)

    def _now(self) -> Any:
        """The outcome if there is one yet."""
        if not self._task.done():
            return None
        return _CANCELLED if self._task.cancelled() else self._task.result()

    async def _outcome(self) -> Any:
        """The outcome, waited for; who waits may be cancelled without cancelling the call."""
        if not self._task.done():
            await asyncio.wait([self._task])
        return self._now()

    async def _inner(self) -> Any:
        """The call of grpc; cancelling who waits for it cancels the call."""
        return _call(self._now() if self._task.done() else await self._task)

    async def _failure(self) -> Failure | None:
        """How the mesh ended the call, waited for; None if it did not."""
        outcome = await self._outcome()
        if isinstance(outcome, BaseException):
            return _failure(outcome)
        attempt = self._trip.attempt
        if attempt is None or self._failed is not None:
            return self._failed
        code = await outcome.code()
        if code is grpc.StatusCode.OK:
            return None
        details, initial = await outcome.details(), await outcome.initial_metadata()
        self._failed = attempt.failure(code, details, lambda: initial, time.monotonic())
        return self._failed

    @property
    def _was_cut(self) -> bool:
        """Whether it was the mesh that cancelled the call."""
        attempt = self._trip.attempt
        return attempt is not None and attempt.limit.cut

    async def _seen(self, error: BaseException) -> BaseException:
        """What the application sees of an error of the call of grpc."""
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if not self._was_cut or (task is not None and task.cancelling()):
                return error
        failure = await self._failure()
        if failure is not None:
            return rpc_error(failure)
        attempt = self._trip.attempt
        if isinstance(error, grpc.aio.AioRpcError) and attempt and attempt.forward.changes_response:
            return grpc.aio.AioRpcError(
                error.code(),
                grpc.aio.Metadata(*attempt.initial(error.initial_metadata())),
                error.trailing_metadata(),
                error.details(),
                error.debug_error_string(),
            )
        return error

    def _finished(self) -> bool:
        return isinstance(self._now(), BaseException)

    # --- grpc.aio.RpcContext and grpc.aio.Call ---

    def cancel(self) -> bool:
        if not self._task.done():
            return bool(self._task.cancel())
        outcome = self._now()
        return False if isinstance(outcome, BaseException) else bool(outcome.cancel())

    def cancelled(self) -> bool:
        outcome = self._now()
        if outcome is None or isinstance(outcome, BaseException):
            return outcome is _CANCELLED
        return bool(outcome.cancelled()) and not self._was_cut

    def done(self) -> bool:
        outcome = self._now()
        if outcome is None:
            return False
        return isinstance(outcome, BaseException) or bool(outcome.done())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        outcome = self._now()
        if outcome is None:
            self._callbacks.append(callback)
        elif isinstance(outcome, BaseException):
            callback(self)
        else:
            outcome.add_done_callback(partial(_told, callback, self))

    def time_remaining(self) -> float | None:
        outcome = self._now()
        if outcome is not None and not isinstance(outcome, BaseException):
            remaining: float | None = outcome.time_remaining()
            return remaining
        ends = self._trip.ends
        return None if ends is None else max(0.0, ends - time.monotonic())

    async def initial_metadata(self) -> Any:
        outcome = await self._outcome()
        if isinstance(outcome, BaseException):
            return grpc.aio.Metadata()
        metadata = await outcome.initial_metadata()
        attempt = self._trip.attempt
        if not metadata and outcome.done() and (failure := await self._failure()) is not None:
            return grpc.aio.Metadata(*failure.initial)
        if attempt is None or not attempt.forward.changes_response:
            return metadata
        return grpc.aio.Metadata(*attempt.initial(metadata))

    async def trailing_metadata(self) -> Any:
        failure = await self._failure()
        if failure is not None:
            return grpc.aio.Metadata(*failure.trailing)
        return await self._now().trailing_metadata()

    async def code(self) -> grpc.StatusCode:
        failure = await self._failure()
        if failure is not None:
            return failure.code
        code: grpc.StatusCode = await self._now().code()
        return code

    async def details(self) -> str:
        failure = await self._failure()
        if failure is not None:
            return failure.details
        details: str = await self._now().details()
        return details

    async def debug_error_string(self) -> str:
        failure = await self._failure()
        if failure is not None:
            return failure.debug
        text: str = await self._now().debug_error_string()
        return text

    async def wait_for_connection(self) -> None:
        inner = await self._inner()
        try:
            await inner.wait_for_connection()
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            seen = await self._seen(error)
            raise seen from seen.__cause__

    def __repr__(self) -> str:
        outcome = self._now()
        return f"<{type(self).__name__} of {'a call not started' if outcome is None else outcome}>"


def _told(callback: Callable[[Any], None], call: MeshCall, inner: object) -> None:
    callback(call)


def _failure(outcome: BaseException) -> Failure:
    if isinstance(outcome, Failure):
        return outcome
    return Failure(grpc.StatusCode.UNKNOWN, str(outcome))


def _call(outcome: Any) -> Any:
    """The call of grpc in an outcome, or its exception raised."""
    if isinstance(outcome, Failure):
        raise rpc_error(outcome) from outcome.cause
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


class _UnaryResponse(MeshCall):
    def __await__(self) -> Generator[Any, None, Any]:
        inner = yield from self._inner().__await__()
        try:
            return (yield from inner.__await__())
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            seen = yield from self._seen(error).__await__()
            raise seen from seen.__cause__


class _StreamResponse(MeshCall):
    _responses: AsyncIterator[Any] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._responses is None:
            self._responses = self._read_all()
        return self._responses

    async def _read_all(self) -> AsyncIterator[Any]:
        inner = await self._inner()
        try:
            async for response in inner:
                self._answered()
                yield response
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            seen = await self._seen(error)
            raise seen from seen.__cause__

    async def read(self) -> Any:
        inner = await self._inner()
        try:
            response = await inner.read()
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            seen = await self._seen(error)
            raise seen from seen.__cause__
        if response is not grpc.aio.EOF:
            self._answered()
        return response

    def _answered(self) -> None:
        if self._trip.attempt is not None:
            self._trip.attempt.limit.answered = True

    def __del__(self) -> None:
        # As grpc's own: nobody can read the responses any more.
        task = getattr(self, "_task", None)
        if task is not None and not task.done() and not task.get_loop().is_closed():
            task.cancel()


class _StreamRequest(MeshCall):
    # grpc's intercepted calls ask the call that they wrap for this.
    _done_writing_flag = False

    async def write(self, request: Any) -> None:
        if self._finished():
            raise asyncio.InvalidStateError(_FINISHED)
        inner = _call(await self._outcome())
        try:
            await inner.write(request)
            self._trip.wrote(request)
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            seen = await self._seen(error)
            raise seen from seen.__cause__

    async def done_writing(self) -> None:
        self._done_writing_flag = True
        outcome = await self._outcome()
        if not isinstance(outcome, BaseException):
            await outcome.done_writing()
            self._trip.requested()


class UnaryUnary(_UnaryResponse, grpc.aio.UnaryUnaryCall[Any, Any]):
    pass


class UnaryStream(_StreamResponse, grpc.aio.UnaryStreamCall[Any, Any]):
    pass


class StreamUnary(_StreamRequest, _UnaryResponse, grpc.aio.StreamUnaryCall[Any, Any]):
    pass


class StreamStream(_StreamRequest, _StreamResponse, grpc.aio.StreamStreamCall[Any, Any]):
    pass
