"""gRPC calls that go into an access log: what they are watched for, and when they are over."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable
from random import random
from typing import Any

import grpc

from meshsdk._grpc.values import Failure, Pairs, headers_of
from meshsdk.accesslog import Outcome, Record, finish
from meshsdk.call import Reply, Request
from meshsdk.errors import CallError
from meshsdk.model import ListenerView

_FRAME = 5  # bytes before each message
_GRPC = ("content-type", "application/grpc")

_LOCAL = (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)

# The core's own words when the caller ended a call, and when its connection broke.
_GIVEN_UP = ("Locally cancelled by application!", "Channel closed!", "Deadline Exceeded",
             "Stream removed (Deadline Exceeded)")  # fmt: skip
_BROKEN = ("Socket closed", "Connection reset", "Broken pipe", "GOAWAY", "Stream removed",
           "Received RST_STREAM")  # fmt: skip


def record_of(
    view: ListenerView, authority: str, path: str, metadata: Any, waited: float
) -> Record:
    """The record of a call that began `waited` seconds ago."""
    headers = [*headers_of(metadata), ("te", "trailers"), _GRPC]
    start, began = time.time() - waited, time.monotonic() - waited
    request = Request("POST", path, authority=authority, headers=headers, grpc=True, start=start)
    return Record(view, request, began, random)


def counting(codecs: tuple[Any, Any], record: Record) -> tuple[Any, Any]:
    """Codecs that tell the record of each message."""
    serialize, deserialize = codecs

    def out(request: Any) -> bytes:
        data: bytes = request if serialize is None else serialize(request)
        record.received += _FRAME + len(data)
        return data

    def back(data: bytes) -> Any:
        record.sent += _FRAME + len(data)
        record.began_to_answer(time.monotonic())
        return data if deserialize is None else deserialize(data)

    return out, back


def over(record: Record, call: Any) -> None:
    """A sync call that has ended, or the error that it ended with."""
    code, details = call.code(), call.details()  # waits for nothing, and finds the cause
    cause = call.__cause__ if isinstance(call, BaseException) else None
    _finish(record, code, details, cause, call.initial_metadata, call.trailing_metadata)


def broke_off(record: Record, error: BaseException) -> None:
    """A blocking sync call that has ended with an exception."""
    if isinstance(error, grpc.RpcError):
        over(record, error)
    else:
        finish(record, time.monotonic(), Outcome.GIVEN_UP)


def watch(record: Record, call: Any) -> None:
    """Finish the record with a sync call; does not keep the call, which may be dropped."""
    reference = weakref.ref(call)

    def end() -> None:
        found = reference()
        if found is None:
            finish(record, time.monotonic(), Outcome.GIVEN_UP)
        elif _lacks_metadata(found):
            # It comes by the very thread that runs this.
            threading.Thread(target=over, args=(record, found), daemon=True).start()
        else:
            over(record, found)

    if not call.add_callback(end):
        end()


def _lacks_metadata(call: Any) -> bool:
    """Whether a call of grpc that is over still waits for its first event."""
    state = getattr(getattr(call, "_inner", call), "_state", None)
    return state is not None and state.initial_metadata is None


def watch_aio(record_now: Callable[[], Record | None], call: Any) -> None:
    """Finish the record, once there is one, with a call of the aio API."""

    def end(_: object) -> None:
        record = record_now()
        if record is not None:
            # The response of a call that is just ending is yet to be deserialized.
            asyncio.get_running_loop().call_soon(_over_aio, record, call)

    call.add_done_callback(end)


def _over_aio(record: Record, call: Any) -> None:
    failure: Failure | None = _at_once(call._failure())
    if failure is not None:
        initial, trailing = failure.initial, failure.trailing
        given = (lambda: initial), (lambda: trailing)
        _finish(record, failure.code, failure.details, failure.cause, *given)
        return
    code, details = _at_once(call.code()), _at_once(call.details())
    metadata = call.initial_metadata, call.trailing_metadata
    read = (lambda: _at_once(metadata[0]())), (lambda: _at_once(metadata[1]()))
    _finish(record, code, details, None, *read)


def _at_once(coroutine: Any) -> Any:
    """The result of a coroutine of a call that is over: nothing is left to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    return None


def _finish(
    record: Record,
    code: Any,
    details: str | None,
    cause: object,
    initial: Callable[[], Pairs | None],
    trailing: Callable[[], Pairs | None],
) -> None:
    now = time.monotonic()
    number = code.value[0] if isinstance(code, grpc.StatusCode) else 2
    said = details or ""
    error = cause if isinstance(cause, CallError) else None
    ends = (("grpc-status", str(number)), *((("grpc-message", said),) if said else ()))
    headers = headers_of(initial())
    if record.answers or headers:
        record.answered(now, 200, (*headers, _GRPC))
    if isinstance(record.decision, Reply) or error is not None:
        if record.answers:  # what the server would have said is not known, in Envoy neither
            finish(record, now, error=error)
            return
        record.replied(200, (_GRPC, *ends), 0)
        finish(record, now, error=error, grpc=number)
        return
    if code in _LOCAL and said in _GIVEN_UP:
        finish(record, now, Outcome.GIVEN_UP)
        return
    broken = code is grpc.StatusCode.UNAVAILABLE and any(word in said for word in _BROKEN)
    if broken and not record.answers:
        record.replied(200, (_GRPC, *ends), 0)
        finish(record, now, Outcome.RESET, grpc=number)
        return
    record.answered(now, 200, (*headers, _GRPC))
    trailers = (*headers_of(trailing()), *ends)
    outcome = Outcome.RESET if broken else Outcome.DONE
    finish(record, now, outcome, trailers=trailers, grpc=number)
