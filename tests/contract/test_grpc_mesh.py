"""What the mesh does to gRPC calls: routing, faults, limits, answers of its own, updates.

Every test runs over the sync and the aio channel, through one blocking shape of a call.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from meshsdk import errors
from meshsdk.grpc import MeshRpcError, client_interceptor
from meshsdk.grpc_aio import client_interceptors
from meshsdk.matching import Fraction, HeaderMatch, PathKind, PathMatch, StringKind, StringMatch
from meshsdk.model import (
    DirectResponseAction,
    Fault,
    FaultAbort,
    FaultDelay,
    HeaderMutations,
    HeaderOption,
    ListenerView,
    RedirectAction,
    Route,
    RouteMatch,
)
from meshsdk.propagation import serving
from tests.support.ads import wait_until
from tests.support.echo_grpc import EchoReply, EchoRequest, EchoServer, EchoStub
from tests.support.grpc_clients import NAME, Client, attempts, calls_of
from tests.support.static_mesh import ANY, PASSTHROUGH, StaticMesh, forward

ALWAYS = Fraction(100)
DEAD = "127.0.0.1:1"
JASON = RouteMatch(
    PathMatch(PathKind.PREFIX, "/"),
    (HeaderMatch("end-user", StringMatch(StringKind.EXACT, "jason")),),
)


@pytest.fixture(scope="module")
def a() -> Iterator[EchoServer]:
    with EchoServer("a") as made:
        yield made


@pytest.fixture(scope="module")
def b() -> Iterator[EchoServer]:
    with EchoServer("b") as made:
        yield made


@pytest.fixture(params=["sync", "aio"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    made = Client(request.param)
    yield made
    made.close()
    wait_until(lambda: attempts(made.mesh.snapshot) == 0, what="every attempt ended")


METHODS = pytest.mark.parametrize("method", ["Unary", "Down", "Up", "Both"])


# --- routing ---------------------------------------------------------------------------------


def test_header_match(client: Client, a: EchoServer, b: EchoServer) -> None:
    client.mesh.endpoints("v1", a.target)
    client.mesh.endpoints("v2", b.target)
    client.mesh.listen(NAME, forward("v2", match=JASON), forward("v1"))
    jason = {"metadata": (("end-user", "jason"),)}
    assert client.unary(arguments=jason).server == "b"
    assert client.unary().server == "a"
    for method in ("Unary", "Down", "Up", "Both"):
        assert client.outcome(method, *calls_of(method), **jason)[1][0].server == "b"
        assert client.outcome(method, *calls_of(method))[1][0].server == "a"


def test_the_header_of_the_request_being_served_matches_too(
    client: Client, a: EchoServer, b: EchoServer
) -> None:
    client.mesh.endpoints("v1", a.target)
    client.mesh.endpoints("v2", b.target)
    client.mesh.listen(NAME, forward("v2", match=JASON), forward("v1"))
    if client.kind == "sync":
        with serving([("end-user", "jason"), ("x-request-id", "1")], {"end-user"}):
            reply = client.unary()
    else:

        async def call() -> Any:
            with serving([("end-user", "jason"), ("x-request-id", "1")], {"end-user"}):
                return await client.stub.Unary(EchoRequest())

        reply = client.run(call())
    assert reply.server == "b"
    assert ("x-request-id", b"1") in [(h.name, h.value) for h in reply.metadata]


@METHODS
@pytest.mark.parametrize("delay", [0.0, 0.002])
def test_trace_headers_go_out_unless_the_caller_set_them(
    a: EchoServer, method: str, delay: float
) -> None:
    client = Client("sync")
    client.mesh.endpoints("v1", a.target)
    fault = Fault(FaultDelay(delay, ALWAYS)) if delay else None
    client.mesh.listen(NAME, forward("v1", fault=fault))
    with serving([("traceparent", "00-1"), ("x-request-id", "served")]):
        _, replies, _ = client.outcome(
            method, *calls_of(method), metadata=(("x-request-id", "mine"),)
        )
    got = [(h.name, h.value) for h in replies[0].metadata]
    assert ("traceparent", b"00-1") in got
    assert [value for name, value in got if name == "x-request-id"] == [b"mine"]
    client.close()


def test_path_match_and_rewrite(client: Client, a: EchoServer, b: EchoServer) -> None:
    client.mesh.endpoints("v1", a.target)
    client.mesh.endpoints("v2", b.target)
    unary = RouteMatch(PathMatch(PathKind.EXACT, "/meshtest.Echo/Unary"))
    package = RouteMatch(PathMatch(PathKind.PREFIX, "/meshtest."))
    client.mesh.listen(NAME, forward("v2", match=unary), forward("v1"))
    assert client.unary().server == "b"
    assert client.outcome("Down", *calls_of("Down"))[1][0].server == "a"
    client.mesh.listen(NAME, forward("v1", match=package, prefix_rewrite="/moved."))
    assert client.unary().method == "/moved.Echo/Unary"


def test_authority_is_the_service_and_a_rewritten_host_wins(client: Client, a: EchoServer) -> None:
    client.mesh.endpoints("v1", a.target)
    client.mesh.listen(NAME, forward("v1"))
    assert client.unary().authority == NAME
    client.mesh.listen(NAME, forward("v1", host_rewrite="other.example:80"))
    assert client.unary().authority == "other.example:80"


def test_header_mutations(client: Client, a: EchoServer) -> None:
    client.mesh.endpoints("v1", a.target)
    mutations = HeaderMutations(
        request_set=(HeaderOption("x-added", "%REQ(x-mine)%"),),
        request_remove=("x-secret",),
        response_set=(HeaderOption("x-answer", "mesh"),),
        response_remove=("x-who",),
    )
    client.mesh.listen(NAME, forward("v1", mutations=mutations))
    metadata = (("x-mine", "me"), ("x-secret", "s"), ("x-raw-bin", b"\x01"))
    for method in ("Unary", "Down", "Up", "Both"):
        code, replies, initial = client.outcome(method, *calls_of(method), metadata=metadata)
        assert code is grpc.StatusCode.OK
        got = {h.name: h.value for h in replies[0].metadata}
        assert (got["x-added"], got["x-raw-bin"]) == (b"me", b"\x01")
        assert "x-secret" not in got
        assert dict(initial)["x-answer"] == "mesh"
        assert "x-who" not in dict(initial)
    failure = client.failure(code=5, details="gone")
    assert (failure.code(), failure.details()) == (grpc.StatusCode.NOT_FOUND, "gone")
    assert dict(failure.initial_metadata())["x-answer"] == "mesh"


def test_weighted_clusters(client: Client, a: EchoServer, b: EchoServer) -> None:
    client.mesh.endpoints("v1", a.target)
    client.mesh.endpoints("v2", b.target)
    client.mesh.listen(NAME, forward(("v1", 50), ("v2", 50)))
    seen = [client.unary().server for _ in range(60)]
    assert set(seen) == {"a", "b"}
    client.mesh.listen(NAME, forward(("v1", 0), ("v2", 100)))
    assert {client.unary().server for _ in range(20)} == {"b"}


def test_round_robin_over_endpoints(client: Client, a: EchoServer, b: EchoServer) -> None:
    client.mesh.endpoints("v1", a.target, b.target)
    client.mesh.listen(NAME, forward("v1"))
    seen = [client.unary().server for _ in range(20)]
    assert seen.count("a") == seen.count("b") == 10


# --- faults ----------------------------------------------------------------------------------


@METHODS
def test_delay(client: Client, a: EchoServer, method: str) -> None:
    client.mesh.endpoints("v1", a.target)
    # The delay does not count into the route's timeout.
    client.mesh.listen(NAME, forward("v1", timeout=0.3, fault=Fault(FaultDelay(0.4, ALWAYS))))
    began = time.monotonic()
    code, replies, _ = client.outcome(method, *calls_of(method), timeout=10)
    assert time.monotonic() - began >= 0.4
    assert code is grpc.StatusCode.OK
    assert len(replies) == 1


@METHODS
def test_a_delay_longer_than_the_deadline(client: Client, a: EchoServer, method: str) -> None:
    client.mesh.endpoints("v1", a.target)
    client.mesh.listen(NAME, forward("v1", fault=Fault(FaultDelay(7, ALWAYS))))
    before = a.calls
    began = time.monotonic()
    code, _, _ = client.outcome(method, *calls_of(method), timeout=0.2)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0.2 <= time.monotonic() - began < 2
    assert a.calls == before


def test_blocking_calls_wait_for_the_delay_too(a: EchoServer) -> None:
    client = Client("sync")
    client.mesh.endpoints("v1", a.target)
    client.mesh.listen(NAME, forward("v1", fault=Fault(FaultDelay(0.1, ALWAYS))))
    began = time.monotonic()
    assert client.stub.Unary(EchoRequest(text="x")).text == "x"
    assert client.stub.Up(iter([EchoRequest(text="x")])).text == "x"
    assert client.stub.Up.with_call(iter([EchoRequest(text="x")]))[1].code() is grpc.StatusCode.OK
    assert time.monotonic() - began >= 0.3
    client.close()


def test_a_delayed_future_can_be_cancelled(a: EchoServer) -> None:
    client = Client("sync")
    client.mesh.endpoints("v1", a.target)
    client.mesh.listen(NAME, forward("v1", fault=Fault(FaultDelay(7, ALWAYS))))
    before = a.calls
    began = time.monotonic()
    future = client.stub.Unary.future(EchoRequest())
    stream = client.stub.Down(EchoRequest())
    assert time.monotonic() - began < 5
    done = threading.Event()
    future.add_done_callback(lambda f: done.set())
    assert future.cancel()
    assert stream.cancel()
    assert done.wait(5)
    with pytest.raises(grpc.FutureCancelledError):
        future.result()
    with pytest.raises(grpc.RpcError):
        next(stream)
    assert stream.code() is grpc.StatusCode.CANCELLED
    assert a.calls == before
    client.close()


def test_a_delayed_aio_call_can_be_cancelled(a: EchoServer) -> None:
    client = Client("aio")
    client.mesh.endpoints("v1", a.target)
    client.mesh.listen(NAME, forward("v1", fault=Fault(FaultDelay(7, ALWAYS))))
    before = a.calls

    async def cancel() -> tuple[Any, bool]:
        call = client.stub.Unary(EchoRequest())
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return await call.code(), call.cancelled()

    assert client.run(cancel()) == (grpc.StatusCode.CANCELLED, True)
    assert a.calls == before
    client.close()


@METHODS
@pytest.mark.parametrize("delay", [None, FaultDelay(0.02, ALWAYS)])
def test_abort(client: Client, a: EchoServer, method: str, delay: Any) -> None:
    client.mesh.endpoints("v1", a.target)
    before = a.calls
    fault = Fault(delay, FaultAbort(ALWAYS, grpc_status=grpc.StatusCode.ABORTED.value[0]))
    client.mesh.listen(NAME, forward("v1", fault=fault))
    assert client.outcome(method, *calls_of(method))[0] is grpc.StatusCode.ABORTED
    client.mesh.listen(NAME, forward("v1", fault=Fault(delay, FaultAbort(ALWAYS, 503))))
    assert client.outcome(method, *calls_of(method))[0] is grpc.StatusCode.UNAVAILABLE
    assert a.calls == before


def test_abort_is_an_error_like_any_other(client: Client, a: EchoServer) -> None:
    client.mesh.endpoints("v1", a.target)
    client.mesh.listen(NAME, forward("v1", fault=Fault(None, FaultAbort(ALWAYS, grpc_status=14))))
    error = client.failure()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details() == "fault filter abort"
    assert isinstance(error.__cause__, errors.FaultAbort)
    assert "fault filter abort" in str(error)
    assert len(error.initial_metadata()) == 0
    if client.kind == "sync":
        assert isinstance(error, MeshRpcError)
        assert isinstance(error, grpc.Call)
        assert isinstance(error, grpc.Future)
        assert error.exception() is error
        assert error.traceback() is not None
        assert error.done()
        assert not error.cancelled()
        with pytest.raises(grpc.RpcError):
            next(error)
    else:
        assert isinstance(error, grpc.aio.AioRpcError)


# --- answers of the mesh -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "code"),
    [
        (DirectResponseAction(200, b"hello"), "UNKNOWN"),
        (DirectResponseAction(404, b"nothing here"), "UNIMPLEMENTED"),
        (DirectResponseAction(403), "PERMISSION_DENIED"),
        (DirectResponseAction(503, b"later"), "UNAVAILABLE"),
        (RedirectAction(301, host="other.example"), "UNKNOWN"),
    ],
)
def test_http_answers(client: Client, action: Any, code: str) -> None:
    client.mesh.listen(NAME, Route("answer", ANY, action))
    error = client.failure()
    assert error.code().name == code
    body = getattr(action, "body", b"")
    assert error.details() == body.decode() or not body
    if isinstance(action, RedirectAction):
        location = dict(error.trailing_metadata())["location"]
        assert location == "http://other.example/meshtest.Echo/Unary"
    for method in ("Unary", "Down", "Up", "Both"):
        assert client.outcome(method, *calls_of(method))[0].name == code


def test_no_route(client: Client) -> None:
    client.mesh.listen(NAME)
    error = client.failure()
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert isinstance(error.__cause__, errors.NoRoute)


def test_cluster_that_does_not_exist(client: Client) -> None:
    client.mesh.listen(NAME, forward("gone"))
    error = client.failure()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert isinstance(error.__cause__, errors.ClusterNotFound)
    assert error.__cause__.cluster == "gone"


def test_listener_that_does_not_exist(client: Client) -> None:
    client.mesh.publish({NAME: ListenerView(NAME, absent="no listener of that name")})
    error = client.failure()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "no listener of that name" in error.details()


def test_refused_host(client: Client) -> None:
    client.mesh.listen("unknown.example:80", Route("block_all", ANY, DirectResponseAction(502)))
    client.open("unknown.example:80")
    assert client.failure().code() is grpc.StatusCode.UNAVAILABLE


def test_unknown_host_goes_out_unchanged(client: Client, a: EchoServer) -> None:
    client.mesh.listen(a.target, forward(PASSTHROUGH.name))
    client.open(a.target)
    reply = client.unary()
    assert (reply.server, reply.authority) == ("a", a.target)


@pytest.mark.parametrize("form", ["dns:///{}", "dns:{}", "ipv4:{}", "{}"])
def test_forms_of_a_target(client: Client, a: EchoServer, form: str) -> None:
    client.mesh.listen(a.target, forward(PASSTHROUGH.name))
    client.open(form.format(a.target))
    assert client.unary().server == "a"


@pytest.mark.parametrize("target", ["", "no port:x", "host:99999", "a/b:1"])
def test_a_target_that_is_none_is_refused_by_grpc_itself(client: Client, target: str) -> None:
    with grpc.insecure_channel(target) as raw, pytest.raises(grpc.RpcError) as caught:
        EchoStub(raw).Unary(EchoRequest(), timeout=10)
    client.open(target)
    error = client.failure()
    assert (error.code(), error.details()) == (caught.value.code(), caught.value.details())


def test_unix_socket_is_not_the_meshs_business(client: Client, tmp_path: Any) -> None:
    target = f"unix:{tmp_path}/echo.sock"
    with EchoServer("u", address=target):
        client.open(target)
        assert client.unary().server == "u"


# --- endpoints ---------------------------------------------------------------------------------


@METHODS
def test_no_endpoints(client: Client, method: str) -> None:
    client.mesh.endpoints("v1")
    client.mesh.listen(NAME, forward("v1"))
    began = time.monotonic()
    assert client.outcome(method, *calls_of(method))[0] is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - began < 5
    error = client.failure()
    assert error.details() == "no healthy upstream"
    assert isinstance(error.__cause__, errors.NoHealthyUpstream)
    waits = {"wait_for_ready": True, "timeout": 0.2}
    assert client.outcome(method, *calls_of(method), **waits)[0].name == "DEADLINE_EXCEEDED"


@METHODS
def test_wait_for_ready_gets_the_endpoint_that_arrives(
    client: Client, a: EchoServer, method: str
) -> None:
    client.mesh.endpoints("v1")
    client.mesh.listen(NAME, forward("v1"))

    def arrive() -> None:
        client.mesh.endpoints("v1", a.target)
        client.mesh.listen(NAME, forward("v1"))

    timer = threading.Timer(0.1, arrive)
    timer.start()
    waits = {"wait_for_ready": True, "timeout": 10}
    assert client.outcome(method, *calls_of(method), **waits)[0] is grpc.StatusCode.OK
    timer.join()


def test_an_endpoint_that_refuses_is_passed_over(client: Client, a: EchoServer) -> None:
    client.mesh.endpoints("v1", DEAD, "127.0.0.1:2", a.target)
    client.mesh.listen(NAME, forward("v1"))
    assert {client.unary().server for _ in range(12)} == {"a"}
    waits = {"wait_for_ready": True}
    assert {client.unary(arguments=waits).server for _ in range(6)} == {"a"}


def test_a_second_attempt_sends_what_the_first_would_have(client: Client, a: EchoServer) -> None:
    client.mesh.endpoints("v1", DEAD, a.target)
    added = HeaderMutations(request_set=(HeaderOption("x-added", "1"),))
    client.mesh.listen(NAME, forward("v1", mutations=added))
    for _ in range(4):
        reply = client.unary(arguments={"metadata": (("x-mine", "1"),)})
        names = [h.name for h in reply.metadata]
        assert (names.count("x-added"), names.count("x-mine")) == (1, 1)


def test_streams_avoid_an_endpoint_that_is_known_to_be_down(client: Client, a: EchoServer) -> None:
    client.mesh.endpoints("v1", DEAD, a.target)
    client.mesh.listen(NAME, forward("v1"))
    for _ in range(4):
        client.unary()
    for _ in range(3):
        for method in ("Unary", "Down", "Up", "Both"):
            code, replies, _ = client.outcome(method, *calls_of(method), timeout=5)
            assert (code, replies[0].server) == (grpc.StatusCode.OK, "a")


def test_only_endpoints_that_refuse(client: Client) -> None:
    client.mesh.endpoints("v1", DEAD, "127.0.0.1:2")
    client.mesh.listen(NAME, forward("v1"))
    error = client.failure()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert isinstance(error.__cause__, errors.ConnectFailure)
    assert error.__cause__.endpoint in (DEAD, "127.0.0.1:2")


def test_a_server_that_speaks_of_connection_failures_is_asked_once(
    client: Client, a: EchoServer
) -> None:
    client.mesh.endpoints("v1", a.target, a.target.replace("127.0.0.1", "127.0.0.2"))
    client.mesh.listen(NAME, forward("v1"))
    for _ in range(2):
        client.unary()
    before = a.calls
    words = "failed to connect to all addresses; last error: of the server's own backend"
    for _ in range(2):
        assert client.failure(code=14, details=words).details() == words
    assert a.calls == before + 2


def test_endpoint_that_comes_back(client: Client, a: EchoServer) -> None:
    with EchoServer("c") as c:
        target = c.target
        client.mesh.endpoints("v1", target, a.target)
        client.mesh.listen(NAME, forward("v1"))
        assert {client.unary().server for _ in range(4)} == {"a", "c"}
    assert {client.unary().server for _ in range(6)} == {"a"}
    with EchoServer("c", address=target):
        wait_until(lambda: client.unary().server == "c", 10)


# --- updates ---------------------------------------------------------------------------------


def test_update_during_a_call(client: Client, a: EchoServer, b: EchoServer) -> None:
    client.mesh.endpoints("v1", a.target)
    client.mesh.endpoints("v2", b.target)
    client.mesh.listen(NAME, forward("v1"))
    client.unary()
    answers: list[Any] = []
    slow = threading.Thread(target=lambda: answers.append(client.unary(delay=0.3)))
    before = a.calls
    slow.start()
    wait_until(lambda: a.calls > before)
    client.mesh.listen(NAME, forward("v2"))
    assert client.unary().server == "b"
    slow.join()
    assert answers[0].server == "a"
    wait_until(lambda: _pool(client).draining == ())
    client.unary()


def _pool(client: Client) -> Any:
    return client.channel._pool


def test_a_stream_goes_on_when_its_endpoint_leaves(
    client: Client, a: EchoServer, b: EchoServer
) -> None:
    client.mesh.endpoints("v1", a.target)
    client.mesh.endpoints("v2", b.target)
    client.mesh.listen(NAME, forward("v1"))

    def leave() -> None:
        client.mesh.listen(NAME, forward("v2"))

    before = a.calls
    timer = threading.Thread(target=lambda: (wait_until(lambda: a.calls > before), leave()))
    timer.start()
    code, replies, _ = client.outcome("Down", EchoRequest(count=20, delay=0.01), timeout=10)
    assert code is grpc.StatusCode.OK
    assert [reply.server for reply in replies] == ["a"] * 20
    timer.join()
    assert client.unary().server == "b"
    wait_until(lambda: _pool(client).draining == ())


def test_endpoints_come_and_go_under_load(client: Client, a: EchoServer, b: EchoServer) -> None:
    sets = ((a.target,), (a.target, b.target), (b.target,))
    client.mesh.endpoints("v1", *sets[0])
    client.mesh.listen(NAME, forward("v1"))
    stop = threading.Event()
    failures: list[Any] = []
    counts = [0, 0, 0]

    def load(number: int) -> None:
        while not stop.is_set():
            try:
                client.unary(arguments={"timeout": 10})
                code, _, _ = client.outcome("Down", EchoRequest(count=3), timeout=10)
                assert code is grpc.StatusCode.OK
            except BaseException as error:
                failures.append(error)
                return
            counts[number] += 1

    threads = [threading.Thread(target=load, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(40):
        client.mesh.endpoints("v1", *sets[turn % 3])
        client.mesh.listen(NAME, forward("v1"))
        goal = [count + 1 for count in counts]
        wait_until(
            lambda goal=goal: failures or all(c >= g for c, g in zip(counts, goal, strict=True)), 20
        )
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    client.unary()
    wait_until(lambda: _pool(client).draining == ())
    assert len(_pool(client)._peers) <= 2


def test_a_call_delayed_past_the_removal_of_its_endpoint(client: Client, a: EchoServer) -> None:
    client.mesh.endpoints("v1", a.target)
    client.mesh.listen(NAME, forward("v1", fault=Fault(FaultDelay(0.2, ALWAYS))))
    answers: list[Any] = []
    slow = threading.Thread(
        target=lambda: answers.append(client.outcome("Unary", EchoRequest(), timeout=10))
    )
    client.ready()
    slow.start()
    waiting = client.channel._life.late if client.kind == "sync" else client.channel._late
    wait_until(lambda: len(waiting))
    client.mesh.endpoints("v1")
    client.mesh.listen(NAME, forward("v1"))
    slow.join()
    assert answers[0][0] is grpc.StatusCode.OK
    wait_until(lambda: _pool(client).draining == () and not _pool(client)._peers)


# --- waiting for configuration -----------------------------------------------------------------


@METHODS
def test_configuration_that_arrives_in_time(client: Client, a: EchoServer, method: str) -> None:
    def arrive() -> None:
        client.mesh.endpoints("v1", a.target)
        client.mesh.listen(NAME, forward("v1"))

    timer = threading.Timer(0.1, arrive)
    timer.start()
    code, replies, _ = client.outcome(method, *calls_of(method), timeout=10)
    assert (code, replies[0].server) == (grpc.StatusCode.OK, "a")
    timer.join()


@METHODS
def test_configuration_that_does_not_arrive(client: Client, method: str) -> None:
    began = time.monotonic()
    code, _, _ = client.outcome(method, *calls_of(method), timeout=0.2)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0.2 <= time.monotonic() - began < 2


def test_why_configuration_did_not_arrive(client: Client) -> None:
    error = client.failure(arguments={"timeout": 0.1})
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.details() == (
        f"no configuration for {NAME} arrived within 0.1 s: nothing arrived for {NAME}"
    )
    assert isinstance(error.__cause__, errors.NotReady)


def test_a_mesh_that_gives_up_before_the_deadline(client: Client) -> None:
    wait_for = client.mesh.wait_for

    def gives_up(name: str, timeout: float | None = None) -> ListenerView:
        return wait_for(name, 0.05)

    client.mesh.wait_for = gives_up  # type: ignore[method-assign]
    error = client.failure(arguments={"timeout": 5})
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert isinstance(error.__cause__, errors.NotReady)


def test_nothing_blocks_whoever_makes_a_call_object() -> None:
    client = Client("sync")
    began = time.monotonic()
    calls = [
        client.stub.Unary.future(EchoRequest(), timeout=0.3),
        client.stub.Down(EchoRequest(), timeout=0.3),
        client.stub.Up.future(iter([EchoRequest()]), timeout=0.3),
        client.stub.Both(iter([EchoRequest()]), timeout=0.3),
    ]
    assert time.monotonic() - began < 0.2
    assert all(call.is_active() for call in calls)
    for call in calls:
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert isinstance(call.exception().__cause__, errors.NotReady)
    client.close()


def test_closing_ends_calls_that_wait() -> None:
    client = Client("sync")
    future = client.stub.Unary.future(EchoRequest(), timeout=5)
    client.close()
    assert future.code() is grpc.StatusCode.CANCELLED
    assert future.details() == "Channel closed!"


# --- nothing leaks -----------------------------------------------------------------------------


@METHODS
@pytest.mark.parametrize("delay", [0.0, 0.02])
def test_dropped_calls_leak_no_attempt(
    client: Client, a: EchoServer, method: str, delay: float
) -> None:
    client.mesh.endpoints("v1", a.target)
    fault = Fault(FaultDelay(delay, ALWAYS)) if delay else None
    client.mesh.listen(NAME, forward("v1", fault=fault))
    client.unary()

    # grpcio itself lets a dropped aio stream go on until its deadline.
    timeout = 1 if client.kind == "aio" else 10

    def drop() -> None:
        for _ in range(10):
            message = EchoRequest(count=1000, delay=0.005)
            argument: Any = iter([message]) if method in ("Up", "Both") else message
            call = getattr(client.stub, method)
            if client.kind == "sync" and method in ("Unary", "Up"):
                call.future(argument, timeout=timeout)
            else:
                call(argument, timeout=timeout)

    if client.kind == "sync":
        drop()
    else:

        async def dropping() -> None:
            drop()
            await asyncio.sleep(0.1)

        client.run(dropping())

    def over() -> bool:
        gc.collect()
        return attempts(client.mesh.snapshot) == 0

    wait_until(over, 15, "every attempt ended")


# --- interceptors ------------------------------------------------------------------------------


def test_sync_interceptor(a: EchoServer, b: EchoServer) -> None:
    mesh = StaticMesh()
    mesh.endpoints("v1", a.target)
    mesh.endpoints("v2", b.target)
    mesh.listen(NAME, forward("v2", match=JASON), forward("v1"))
    seen: list[str] = []

    class Sees(grpc.UnaryUnaryClientInterceptor):
        def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            seen.append(details.method)
            return continuation(details, request)

    own = grpc.insecure_channel(DEAD)
    channel = grpc.intercept_channel(own, Sees(), client_interceptor(mesh, NAME))
    stub = EchoStub(channel)
    jason = (("end-user", "jason"),)
    assert stub.Unary(EchoRequest(text="x"), metadata=jason).server == "b"
    reply, call = stub.Unary.with_call(EchoRequest(text="x"), timeout=5)
    assert (reply.server, call.code()) == ("a", grpc.StatusCode.OK)
    assert stub.Unary.future(EchoRequest(text="x")).result(timeout=5).server == "a"
    assert [r.server for r in stub.Down(EchoRequest(count=2), metadata=jason)] == ["b", "b"]
    assert stub.Up(iter([EchoRequest(text="x")])).server == "a"
    assert stub.Up.future(iter([EchoRequest(text="x")]), metadata=jason).result().server == "b"
    assert [r.server for r in stub.Both(iter([EchoRequest()] * 2))] == ["a", "a"]
    assert seen == ["/meshtest.Echo/Unary"] * 3
    with pytest.raises(grpc.RpcError) as caught:
        stub.Unary(EchoRequest(code=5, details="gone"))
    assert caught.value.details() == "gone"
    assert stub.Unary.future(EchoRequest(code=5)).exception().code() is grpc.StatusCode.NOT_FOUND
    bytes_method = channel.unary_unary("/meshtest.Echo/Unary")
    raw = bytes_method(EchoRequest(text="raw").SerializeToString())
    assert EchoReply.FromString(raw).text == "raw"
    mesh.endpoints("v1")
    mesh.listen(NAME, forward("v1"))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Unary(EchoRequest())
    assert caught.value.details() == "no healthy upstream"
    own.close()


async def test_aio_interceptors(a: EchoServer, b: EchoServer) -> None:
    mesh = StaticMesh()
    mesh.endpoints("v1", a.target)
    mesh.endpoints("v2", b.target)
    mesh.listen(NAME, forward("v2", match=JASON), forward("v1"))
    async with grpc.aio.insecure_channel(
        DEAD, interceptors=client_interceptors(mesh, NAME)
    ) as channel:
        stub = EchoStub(channel)
        jason = (("end-user", "jason"),)
        assert (await stub.Unary(EchoRequest(), metadata=jason)).server == "b"
        assert [r.server async for r in stub.Down(EchoRequest(count=2))] == ["a", "a"]
        assert (await stub.Up(iter([EchoRequest()]), metadata=jason)).server == "b"
        assert [r.server async for r in stub.Both(iter([EchoRequest()]))] == ["a"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Unary(EchoRequest(code=5, details="gone"))
        assert caught.value.details() == "gone"


def test_instrumentation_does_not_see_inner_channels(
    a: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import functools

    seen: list[Any] = []

    def instrument(make: Any) -> Any:
        @functools.wraps(make)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            seen.append(args)
            return make(*args, **kwargs)

        return wrapper

    monkeypatch.setattr(grpc, "insecure_channel", instrument(grpc.insecure_channel))
    monkeypatch.setattr(grpc.aio, "insecure_channel", instrument(grpc.aio.insecure_channel))
    for kind in ("sync", "aio"):
        client = Client(kind)
        client.mesh.endpoints("v1", a.target)
        client.mesh.listen(NAME, forward("v1"))
        assert client.unary().server == "a"
        client.close()
    assert seen == []
