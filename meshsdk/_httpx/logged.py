"""Calls that go into an access log: what they are watched for, and when they are over."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from meshsdk._httpx.exchange import text
from meshsdk.accesslog import Outcome, Record, finish
from meshsdk.errors import CallError


def ended(core: Any, record: Record, error: BaseException) -> None:
    """A call that is over with an exception.

    Args:
        core: httpcore or httpcore2.
    """
    cause = error if isinstance(error, CallError) else error.__cause__
    if isinstance(cause, CallError):
        finish(record, time.monotonic(), error=cause)
        return
    broken = (core.RemoteProtocolError, core.ReadError, core.WriteError)
    outcome = Outcome.RESET if isinstance(error, broken) else Outcome.GIVEN_UP
    finish(record, time.monotonic(), outcome)


def count_request(request: Any, record: Record, byte_stream: Any) -> None:
    """Let the bytes of a request's body be counted as they are sent."""
    stream = request.stream
    if isinstance(stream, byte_stream):  # in memory: it stays what it is, and can be sent again
        record.received = sum(len(chunk) for chunk in stream)
    else:
        kind = _Request if hasattr(stream, "__iter__") else _AsyncRequest
        request.stream = kind(stream, record)


def watch_response(core: Any, request: Any, response: Any, record: Record) -> None:
    """Finish the record with the response, which may be the mesh's own."""
    now = time.monotonic()
    headers = [(text(name).lower(), text(value)) for name, value in response.headers]
    length = next((value for name, value in headers if name == "content-length"), "")
    bodiless = request.method == b"HEAD" or response.status in (204, 304) or length == "0"
    info = response.extensions.get("meshsdk")
    if info is not None and info.local:
        if length == "0":  # Envoy says nothing of a body that is not there
            headers = [pair for pair in headers if pair[0] != "content-length"]
        sent = 0 if bodiless else int(length or 0)
        record.replied(response.status, headers, sent)
        finish(record, now, error=info.error)
        return
    record.answered(now, response.status, headers)
    kind = _AsyncResponse if hasattr(response.stream, "__aiter__") else _Response
    response.stream = kind(core, response.stream, record, complete=bodiless)


class _Request:
    def __init__(self, stream: Any, record: Record) -> None:
        self._stream = stream
        self._record = record

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._record.received += len(chunk)
            yield chunk


class _AsyncRequest:
    def __init__(self, stream: Any, record: Record) -> None:
        self._stream = stream
        self._record = record

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._record.received += len(chunk)
            yield chunk


class _Body:
    """A response's body; the call is over when it was read, broke off, or is of no interest."""

    def __init__(self, core: Any, stream: Any, record: Record, *, complete: bool) -> None:
        self._core = core
        self._stream = stream
        self._record = record
        self._complete = complete

    def _closed(self) -> None:
        outcome = Outcome.DONE if self._complete else Outcome.GIVEN_UP
        finish(self._record, time.monotonic(), outcome)

    def __del__(self) -> None:
        self._closed()


class _Response(_Body):
    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._stream:
                self._record.sent += len(chunk)
                yield chunk
            self._complete = True
        except BaseException as error:
            ended(self._core, self._record, error)
            raise

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            self._closed()


class _AsyncResponse(_Body):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                self._record.sent += len(chunk)
                yield chunk
            self._complete = True
        except BaseException as error:
            ended(self._core, self._record, error)
            raise

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._closed()
