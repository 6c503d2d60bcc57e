"""How calls end that the mesh ends: the route's timeout, no route, no cluster, no connection.

Code and details are Envoy's (`tests/conformance/test_grpc_answers_against_envoy.py` asks it); the
mesh's own words are the cause and in `debug_error_string`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest

from meshsdk import errors
from meshsdk.matching import Fraction
from meshsdk.model import (
    DirectResponseAction,
    Fault,
    FaultAbort,
    FaultDelay,
    HeaderMutations,
    HeaderOption,
    RedirectAction,
    Route,
)
from tests.support.ads import wait_until
from tests.support.echo_grpc import EchoRequest, EchoServer
from tests.support.grpc_clients import NAME, Client, attempts, calls_of
from tests.support.static_mesh import ANY, forward

CANCELLED, DEADLINE_EXCEEDED, INTERNAL, OK, UNAVAILABLE, UNIMPLEMENTED, UNKNOWN = (
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.OK,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNKNOWN,
)
ALWAYS = Fraction(100)
DEAD = "127.0.0.1:1"
RESET = "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))"
UF = (
    "upstream connect error or disconnect/reset before headers. "
    "reset reason: remote connection failure"
)

# Every way to make a call and to see its end.
SYNC = [
    ("Unary", "call"), ("Unary", "with_call"), ("Unary", "future"), ("Down", "iterate"),
    ("Up", "call"), ("Up", "with_call"), ("Up", "future"), ("Both", "iterate"),
]  # fmt: skip
AIO = [
    ("Unary", "call"), ("Down", "iterate"), ("Down", "read"),
    ("Up", "call"), ("Up", "write"), ("Both", "iterate"), ("Both", "read"), ("Both", "write"),
]  # fmt: skip
WAYS = [("sync", *way) for way in SYNC] + [("aio", *way) for way in AIO]
EVERY_WAY = pytest.mark.parametrize(
    ("client", "method", "way"), WAYS, indirect=["client"], ids=["-".join(way) for way in WAYS]
)


@pytest.fixture(scope="module")
def early() -> Iterator[EchoServer]:
    """Sends its metadata as soon as a call arrives."""
    with EchoServer("early") as made:
        yield made


@pytest.fixture(scope="module")
def late() -> Iterator[EchoServer]:
    """Sends nothing before its first answer."""
    with EchoServer("late", early=False) as made:
        yield made


@pytest.fixture(params=["sync", "aio"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    made = Client(request.param)
    yield made
    made.close()
    wait_until(lambda: attempts(made.mesh.snapshot) == 0, what="every attempt ended")


class End(NamedTuple):
    """The end of a call as each part of the API tells it."""

    code: Any
    details: Any
    error: Any
    """What was raised."""
    debug: str
    trailing: dict[str, Any]
    initial: dict[str, Any]
    replies: list[Any]


def end_of(client: Client, method: str, way: str, *requests: Any, **more: Any) -> End:
    """Make the call; callbacks, `cancelled` and the like are checked on the way."""
    if client.kind == "sync":
        return _sync_end(client, method, way, list(requests), more)
    return client.run(_aio_end(client, method, way, list(requests), more))  # type: ignore[no-any-return]


def _sync_end(client: Client, method: str, way: str, requests: list[Any], more: Any) -> End:
    argument: Any = iter(requests) if method in ("Up", "Both") else requests[0]
    callable = getattr(client.stub, method)
    replies: list[Any] = []
    error: Any = None
    if way in ("call", "with_call"):
        try:
            if way == "call":
                return End(OK, "", None, "", {}, {}, [callable(argument, **more)])
            reply, call = callable.with_call(argument, **more)
            replies.append(reply)
        except grpc.RpcError as raised:
            call = error = raised
    else:
        call = (callable.future if way == "future" else callable)(argument, **more)
        told, done = threading.Event(), threading.Event()
        if not call.add_callback(told.set):
            told.set()  # it is over already
        call.add_done_callback(lambda _: done.set())
        try:
            if way == "future":
                replies.append(call.result())
            else:
                replies.extend(call)
        except grpc.RpcError as raised:
            error = raised
            assert error is call
            assert call.exception() is call
            assert call.traceback() is not None
            with pytest.raises(grpc.RpcError):
                call.result()
        assert told.wait(5)
        assert done.wait(5)
        assert call.done()
        assert not call.cancelled()
    return End(
        call.code(), call.details(), error, call.debug_error_string(),
        dict(call.trailing_metadata()), dict(call.initial_metadata()), replies,
    )  # fmt: skip


async def _aio_end(client: Client, method: str, way: str, requests: list[Any], more: Any) -> End:
    streams = method in ("Up", "Both")
    callable = getattr(client.stub, method)
    call = (
        callable(**more)
        if way == "write"
        else callable(iter(requests) if streams else requests[0], **more)
    )
    told = asyncio.Event()
    call.add_done_callback(lambda _: told.set())
    replies: list[Any] = []
    error: Any = None
    try:
        if way == "write":
            for request in requests:
                await call.write(request)
            await call.done_writing()
        if way == "read" or (way, method) == ("write", "Both"):
            while (reply := await call.read()) is not grpc.aio.EOF:
                replies.append(reply)
        elif method in ("Unary", "Up"):
            replies.append(await call)
        else:
            async for reply in call:
                replies.append(reply)  # noqa: PERF401 (those before an error count)
    except grpc.aio.AioRpcError as raised:
        error = raised
    await asyncio.wait_for(told.wait(), 5)
    assert call.done()
    assert not call.cancelled()
    end = End(
        await call.code(), await call.details(), error, await call.debug_error_string(),
        dict(await call.trailing_metadata()), dict(await call.initial_metadata()), replies,
    )  # fmt: skip
    if error is not None:
        raised_end = (error.code(), error.details(), error.debug_error_string())
        assert raised_end == (end.code, end.details, end.debug)
        assert dict(error.trailing_metadata()) == end.trailing
        assert dict(error.initial_metadata()) == end.initial
    return end


# --- the timeout of a route --------------------------------------------------------------------


@EVERY_WAY
@pytest.mark.parametrize("own", [10, None])
def test_before_the_response_has_begun(
    client: Client, late: EchoServer, method: str, way: str, own: float | None
) -> None:
    client.mesh.endpoints("v1", late.target)
    client.mesh.listen(NAME, forward("v1", timeout=0.1))
    for _ in range(2):  # the first call connects, the second one finds a connection
        began = time.monotonic()
        end = end_of(client, method, way, EchoRequest(count=1, delay=0.8), timeout=own)
        assert time.monotonic() - began < 0.7
        assert (end.code, end.details) == (UNAVAILABLE, "upstream request timeout")
        assert (end.initial, end.replies) == ({}, [])
        cause = end.error.__cause__
        assert isinstance(cause, errors.RouteTimeout)
        assert (cause.route, cause.cluster, cause.endpoint) == ("to-v1", "v1", late.target)
        assert "UNAVAILABLE:upstream request timeout (route 'to-v1' allows 0.1 s)" in end.debug
        assert "to-v1" in str(end.error)


@EVERY_WAY
def test_after_the_response_has_begun(
    client: Client, early: EchoServer, method: str, way: str
) -> None:
    client.mesh.endpoints("v1", early.target)
    client.mesh.listen(NAME, forward("v1", timeout=0.15))
    for _ in range(2):
        end = end_of(client, method, way, EchoRequest(count=1, delay=0.8), timeout=10)
        assert (end.code, end.details) == (INTERNAL, RESET)
        assert end.initial["x-server"] == "early"
        assert end.trailing == {}
        assert isinstance(end.error.__cause__, errors.RouteTimeout)


@EVERY_WAY
def test_after_some_answers(client: Client, late: EchoServer, method: str, way: str) -> None:
    if method in ("Unary", "Up"):
        method, way = "Down", "iterate"
    client.mesh.endpoints("v1", late.target)
    client.mesh.listen(NAME, forward("v1", timeout=0.4))
    requests = [EchoRequest(text="x", count=40, delay=0.05)] * (40 if method == "Both" else 1)
    end = end_of(client, method, way, *requests, timeout=10)
    assert (end.code, end.details) == (INTERNAL, RESET)
    assert 0 < len(end.replies) < 40
    assert isinstance(end.error.__cause__, errors.RouteTimeout)


@EVERY_WAY
@pytest.mark.parametrize("route", [0.2, 5.0])
def test_the_callers_deadline_that_is_no_longer_than_the_routes(
    client: Client, late: EchoServer, method: str, way: str, route: float
) -> None:
    client.mesh.endpoints("v1", late.target)
    client.mesh.listen(NAME, forward("v1", timeout=route))
    for _ in range(2):
        began = time.monotonic()
        end = end_of(client, method, way, EchoRequest(count=1, delay=1), timeout=0.2)
        assert time.monotonic() - began < 0.9
        assert (end.code, end.details) == (DEADLINE_EXCEEDED, "Deadline Exceeded")
        assert end.error.__cause__ is None


@EVERY_WAY
def test_what_a_server_says_of_deadlines_is_the_servers(
    client: Client, early: EchoServer, method: str, way: str
) -> None:
    client.mesh.endpoints("v1", early.target)
    client.mesh.listen(NAME, forward("v1", timeout=5))
    request = EchoRequest(count=1, code=4, details="Deadline Exceeded")
    for _ in range(2):
        end = end_of(client, method, way, request, timeout=10)
        assert (end.code, end.details) == (DEADLINE_EXCEEDED, "Deadline Exceeded")
        assert end.error.__cause__ is None
        assert end.trailing["x-trailing"] == "bye"


@pytest.mark.parametrize("route", [0.3, None])
def test_an_end_that_is_looked_at_late(route: float | None, early: EchoServer) -> None:
    """Longer after the end than the route allows the call to take."""
    client = Client("sync")
    client.mesh.endpoints("v1", early.target)
    client.mesh.listen(NAME, forward("v1", timeout=route))
    done = threading.Event()
    call = client.stub.Unary.future(EchoRequest(code=4, details="Deadline Exceeded"), timeout=10)
    call.add_done_callback(lambda _: done.set())
    assert done.wait(5)
    threading.Event().wait(0.4)
    assert (call.code(), call.details()) == (DEADLINE_EXCEEDED, "Deadline Exceeded")
    client.close()


@EVERY_WAY
def test_a_call_within_the_timeout(
    client: Client, early: EchoServer, method: str, way: str
) -> None:
    client.mesh.endpoints("v1", early.target)
    client.mesh.listen(NAME, forward("v1", timeout=5))
    for _ in range(2):
        end = end_of(client, method, way, EchoRequest(text="x", count=1), timeout=10)
        assert (end.code, end.details, end.error) == (OK, "", None)
        assert [reply.server for reply in end.replies] == ["early"]


@EVERY_WAY
def test_a_call_that_started_late(client: Client, late: EchoServer, method: str, way: str) -> None:
    client.mesh.endpoints("v1", late.target)
    fault = Fault(FaultDelay(0.05, ALWAYS))
    client.mesh.listen(NAME, forward("v1", timeout=0.1, fault=fault))
    end = end_of(client, method, way, EchoRequest(count=1, delay=0.8), timeout=10)
    assert (end.code, end.details) == (UNAVAILABLE, "upstream request timeout")
    assert isinstance(end.error.__cause__, errors.RouteTimeout)


@EVERY_WAY
def test_wait_for_ready_is_part_of_it(
    client: Client, late: EchoServer, method: str, way: str
) -> None:
    client.mesh.endpoints("v1", late.target)
    client.mesh.listen(NAME, forward("v1", timeout=0.1))
    more = {"timeout": 10, "wait_for_ready": True}
    end = end_of(client, method, way, EchoRequest(count=1, delay=0.8), **more)
    assert (end.code, end.details) == (UNAVAILABLE, "upstream request timeout")


@EVERY_WAY
def test_answers_of_the_mesh_bear_the_routes_headers(
    client: Client, late: EchoServer, method: str, way: str
) -> None:
    client.mesh.endpoints("v1", late.target)
    mutations = HeaderMutations(response_set=(HeaderOption("x-answer", "mesh"),))
    client.mesh.listen(NAME, forward("v1", timeout=0.1, mutations=mutations))
    end = end_of(client, method, way, EchoRequest(count=1, delay=0.8), timeout=10)
    assert (end.code, end.trailing) == (UNAVAILABLE, {"x-answer": "mesh"})


@pytest.mark.parametrize("method", ["Up", "Both"])
def test_a_stream_of_requests_takes_its_time(client: Client, late: EchoServer, method: str) -> None:
    """The timeout of the route starts when the request has ended."""
    client.mesh.endpoints("v1", late.target)
    client.mesh.listen(NAME, forward("v1", timeout=0.3))

    def slowly() -> Iterator[Any]:
        for _ in range(4):
            yield EchoRequest(text="x")
            time.sleep(0.15)

    async def slowly_async() -> Any:
        for _ in range(4):
            yield EchoRequest(text="x")
            await asyncio.sleep(0.15)

    requests = slowly() if client.kind == "sync" else slowly_async()
    code, replies, _ = client.outcome(method, requests, timeout=10)
    assert code is OK
    assert replies


@pytest.mark.parametrize("method", ["Up", "Both"])
def test_cancelling_a_stream_of_requests_is_the_callers(
    client: Client, late: EchoServer, method: str
) -> None:
    client.mesh.endpoints("v1", late.target)
    client.mesh.listen(NAME, forward("v1", timeout=5))
    if client.kind == "sync":
        callable = getattr(client.stub, method)
        callable = callable.future if method == "Up" else callable
        call = callable(iter([EchoRequest(delay=0.5)]), timeout=10)
        assert call.cancel()
        assert call.code() is CANCELLED
        assert call.cancelled()
        with pytest.raises(grpc.FutureCancelledError):
            call.result()
        return

    async def cancel() -> tuple[Any, bool]:
        call = getattr(client.stub, method)(iter([EchoRequest(delay=0.5)]), timeout=10)
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await (call if method == "Up" else call.read())
        return await call.code(), call.cancelled()

    assert client.run(cancel()) == (CANCELLED, True)


def test_a_task_that_is_cancelled_stays_so(late: EchoServer) -> None:
    client = Client("aio")
    client.mesh.endpoints("v1", late.target)
    client.mesh.listen(NAME, forward("v1", timeout=0.3))

    async def cancel() -> Any:
        async def ask() -> None:
            await client.stub.Up(iter([EchoRequest(delay=0.8)]))

        task = asyncio.create_task(ask())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    client.run(cancel())
    client.close()


def test_a_dropped_stream_is_not_kept_by_its_timeout(early: EchoServer) -> None:
    client = Client("sync")
    client.mesh.endpoints("v1", early.target)
    client.mesh.listen(NAME, forward("v1", timeout=60))
    call = client.stub.Both(iter([EchoRequest(delay=1)]))
    assert call.initial_metadata()
    del call
    wait_until(lambda: attempts(client.mesh.snapshot) == 0, 10, "the call ended")
    client.close()


def test_closing_a_channel_under_calls(late: EchoServer, caplog: pytest.LogCaptureFixture) -> None:
    """What looks at the end of a call finds its channel closed."""
    client = Client("sync")
    client.mesh.endpoints("v1", late.target)
    client.mesh.listen(NAME, forward("v1", timeout=5))
    futures = [client.stub.Unary.future(EchoRequest(delay=0.5)) for _ in range(20)]
    client.close()
    assert {future.code() for future in futures} == {CANCELLED}
    assert caplog.messages == []


def test_single_threaded_streams(late: EchoServer) -> None:
    client = Client("sync")
    client.mesh.endpoints("v1", late.target)
    client.mesh.listen(NAME, forward("v1", timeout=0.15))
    option = grpc.experimental.ChannelOptions.SingleThreadedUnaryStream
    client.open(options=[(option, 1)])
    call = client.stub.Down(EchoRequest(count=1, delay=0.8), timeout=10)
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert (call.code(), call.details()) == (UNAVAILABLE, "upstream request timeout")
    assert isinstance(caught.value.__cause__, errors.RouteTimeout)
    client.close()


@EVERY_WAY
def test_the_cap_on_the_callers_deadline(
    client: Client, late: EchoServer, method: str, way: str
) -> None:
    client.mesh.endpoints("v1", late.target)
    client.mesh.listen(NAME, forward("v1", max_grpc_timeout=0.2))
    for _ in range(2):
        end = end_of(client, method, way, EchoRequest(count=1, delay=0.8), timeout=5)
        assert (end.code, end.details) == (DEADLINE_EXCEEDED, "downstream duration timeout")
        assert isinstance(end.error.__cause__, errors.RouteTimeout)
    end = end_of(client, method, way, EchoRequest(count=1, delay=0.4), timeout=None)
    assert end.code is OK


# --- answers without an endpoint -----------------------------------------------------------------


@EVERY_WAY
def test_nowhere_to_go(client: Client, method: str, way: str) -> None:
    client.mesh.listen(NAME)
    end = end_of(client, method, way, EchoRequest())
    assert (end.code, end.details) == (UNIMPLEMENTED, "")
    assert isinstance(end.error.__cause__, errors.NoRoute)
    assert end.debug.startswith("UNIMPLEMENTED: (no route for ")
    assert "no route for " in str(end.error)

    client.mesh.listen(NAME, forward("gone"))
    end = end_of(client, method, way, EchoRequest())
    assert (end.code, end.details) == (UNAVAILABLE, "")
    assert isinstance(end.error.__cause__, errors.ClusterNotFound)
    assert "cluster gone of route 'to-gone' does not exist" in str(end.error)

    client.mesh.endpoints("empty")
    client.mesh.listen(NAME, forward("empty"))
    end = end_of(client, method, way, EchoRequest())
    assert (end.code, end.details) == (UNAVAILABLE, "no healthy upstream")
    assert isinstance(end.error.__cause__, errors.NoHealthyUpstream)


@EVERY_WAY
@pytest.mark.parametrize("dead", [(DEAD,), (DEAD, "127.0.0.1:2")])
def test_nobody_listens(client: Client, method: str, way: str, dead: tuple[str, ...]) -> None:
    client.mesh.endpoints("v1", *dead)
    client.mesh.listen(NAME, forward("v1"))
    for _ in range(2):
        end = end_of(client, method, way, EchoRequest(), timeout=10)
        assert (end.code, end.details) == (UNAVAILABLE, UF)
        assert isinstance(end.error.__cause__, errors.ConnectFailure)
        assert end.error.__cause__.endpoint in dead
        assert "failed to connect to all addresses" in str(end.error)


@pytest.mark.parametrize(
    ("action", "code", "details"),
    [
        (DirectResponseAction(200, b"hello"), UNKNOWN, "hello"),
        (DirectResponseAction(200), UNKNOWN, ""),
        (DirectResponseAction(404, b"nothing here"), UNIMPLEMENTED, "nothing here"),
        (DirectResponseAction(502), UNAVAILABLE, ""),
        (RedirectAction(301, host="other.example"), UNKNOWN, ""),
    ],
)
def test_the_body_is_the_details(client: Client, action: Any, code: Any, details: str) -> None:
    client.mesh.listen(NAME, Route("answer", ANY, action))
    for method in ("Unary", "Down", "Up", "Both"):
        way = "call" if method in ("Unary", "Up") else "iterate"
        end = end_of(client, method, way, EchoRequest())
        assert (end.code, end.details) == (code, details)
        assert f"the mesh answered with HTTP status {action.status}" in str(end.error)


@EVERY_WAY
def test_an_abort(client: Client, method: str, way: str) -> None:
    fault = Fault(None, FaultAbort(ALWAYS, 418))
    client.mesh.listen(NAME, forward("gone", fault=fault))
    end = end_of(client, method, way, *([calls_of("Unary")[0]]))
    assert (end.code, end.details) == (UNKNOWN, "fault filter abort")
    assert isinstance(end.error.__cause__, errors.FaultAbort)
