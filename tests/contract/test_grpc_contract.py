"""What a user of a sync gRPC channel may rely on: first on grpcio itself, then through the mesh."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.experimental
import pytest

from meshsdk.grpc import MeshChannel
from tests.support.ads import wait_until
from tests.support.echo_grpc import EchoReply, EchoRequest, EchoServer, EchoStub
from tests.support.grpc_clients import KINDS, Maker

NOT_FOUND = grpc.StatusCode.NOT_FOUND.value[0]
DEAD = "127.0.0.1:1"


@pytest.fixture(scope="module")
def server() -> Iterator[EchoServer]:
    with EchoServer("a") as made:
        yield made


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Iterator[Maker]:
    def raw(target: str, credentials: Any = None, **more: Any) -> grpc.Channel:
        if credentials is not None:
            return grpc.secure_channel(target, credentials, **more)
        return grpc.insecure_channel(target, **more)

    maker = Maker(request.param, raw, MeshChannel)
    yield maker
    for channel in maker.channels:
        channel.close()
    wait_until(lambda: maker.active() == 0, what="every attempt ended")


@pytest.fixture
def stub(make: Maker, server: EchoServer) -> Any:
    return EchoStub(make(server.target))


def ask(text: str = "hi", **more: Any) -> Any:
    return EchoRequest(text=text, **more)


def asks(*texts: str) -> Iterator[Any]:
    return iter([ask(text) for text in texts])


def texts(replies: Any) -> list[str]:
    return [reply.text for reply in replies]


# --- unary-unary -----------------------------------------------------------------------------


def test_unary_call(stub: Any) -> None:
    assert stub.Unary(ask()).text == "hi"


def test_every_argument_may_be_positional(stub: Any) -> None:
    reply = stub.Unary(ask(), 5.0, (("x-a", "1"),), None, None, grpc.Compression.Gzip)
    assert ("x-a", b"1") in [(h.name, h.value) for h in reply.metadata]


def test_with_call(stub: Any) -> None:
    reply, call = stub.Unary.with_call(ask(), timeout=5)
    assert reply.text == "hi"
    assert isinstance(call, grpc.Call)
    assert call.code() is grpc.StatusCode.OK
    assert call.details() == ""
    assert ("x-server", "a") in call.initial_metadata()
    assert dict(call.trailing_metadata()) == {"x-trailing": "bye", "x-bytes-bin": b"\x00\xff"}
    assert not call.is_active()
    assert call.cancel() is False
    assert call.add_callback(lambda: None) is False


def test_future(stub: Any) -> None:
    future = stub.Unary.future(ask(delay=0.02), timeout=5)
    assert isinstance(future, grpc.Future)
    assert isinstance(future, grpc.Call)
    assert isinstance(future, grpc.RpcError)
    assert future.running()
    assert future.is_active()
    assert 0 < future.time_remaining() <= 5
    seen: list[Any] = []
    done = threading.Event()
    future.add_done_callback(lambda f: (seen.append(f), done.set()))
    assert future.result(timeout=5).text == "hi"
    assert future.exception() is None
    assert future.traceback() is None
    assert future.done()
    assert not future.running()
    assert not future.cancelled()
    assert future.code() is grpc.StatusCode.OK
    assert ("x-server", "a") in future.initial_metadata()
    assert dict(future.trailing_metadata())["x-trailing"] == "bye"
    assert done.wait(5)
    assert seen == [future]
    future.add_done_callback(seen.append)
    assert seen == [future, future]


def test_future_without_deadline_has_no_time_remaining(stub: Any) -> None:
    future = stub.Unary.future(ask(delay=0.02))
    assert future.time_remaining() is None
    future.result()


def test_add_callback(stub: Any) -> None:
    future = stub.Unary.future(ask(delay=0.02))
    called = threading.Event()
    assert future.add_callback(called.set) is True
    assert called.wait(5)
    future.result()
    assert future.add_callback(called.set) is False


def test_result_gives_up_after_its_own_timeout(stub: Any) -> None:
    future = stub.Unary.future(ask(delay=1))
    with pytest.raises(grpc.FutureTimeoutError):
        future.result(timeout=0.01)
    with pytest.raises(grpc.FutureTimeoutError):
        future.exception(timeout=0.01)
    assert future.result(timeout=5).text == "hi"


def test_failure_raises_an_error_that_is_a_call_and_a_future(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Unary(ask(code=NOT_FOUND, details="no such book"))
    error: Any = caught.value
    assert isinstance(error, grpc.Call)
    assert isinstance(error, grpc.Future)
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "no such book"
    assert "no such book" in error.debug_error_string()
    assert "no such book" in str(error)
    assert "NOT_FOUND" in repr(error)
    assert ("x-server", "a") in error.initial_metadata()
    assert ("x-trailing", "bye") in error.trailing_metadata()
    assert error.done()
    assert not error.cancelled()
    assert error.exception() is error
    assert error.traceback() is not None
    with pytest.raises(grpc.RpcError):
        error.result()


def test_failure_of_with_call(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Unary.with_call(ask(code=NOT_FOUND))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_failure_of_a_future_is_the_future(stub: Any) -> None:
    future = stub.Unary.future(ask(code=NOT_FOUND, details="gone"))
    assert future.exception(timeout=5) is future
    with pytest.raises(grpc.RpcError) as caught:
        future.result()
    assert caught.value is future
    assert future.code() is grpc.StatusCode.NOT_FOUND
    assert future.details() == "gone"
    assert "gone" in str(future)
    assert future.traceback() is not None


def test_cancelled_future(stub: Any) -> None:
    future = stub.Unary.future(ask(delay=1))
    seen = threading.Event()
    future.add_done_callback(lambda f: seen.set())
    assert future.cancel() is True
    assert future.cancelled()
    assert future.done()
    assert future.code() is grpc.StatusCode.CANCELLED
    assert future.details() == "Locally cancelled by application!"
    for ask_it in (future.result, future.exception, future.traceback):
        with pytest.raises(grpc.FutureCancelledError):
            ask_it()
    assert seen.wait(5)
    assert future.cancel() is False


def test_deadline(stub: Any) -> None:
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        stub.Unary(ask(delay=2), timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "Deadline Exceeded" in caught.value.details()
    assert time.monotonic() - began < 1.5


def test_deadline_of_a_future(stub: Any) -> None:
    future = stub.Unary.future(ask(delay=2), timeout=0.1)
    assert future.exception() is future
    assert future.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_metadata_reaches_the_server(stub: Any) -> None:
    sent = (("end-user", "jason"), ("x-twice", "1"), ("x-twice", "2"), ("x-raw-bin", b"\x01\xfe"))
    reply = stub.Unary(ask(), metadata=sent)
    got = [(h.name, h.value) for h in reply.metadata]
    for pair in (
        ("end-user", b"jason"),
        ("x-twice", b"1"),
        ("x-twice", b"2"),
        ("x-raw-bin", b"\x01\xfe"),
    ):
        assert pair in got


@pytest.mark.parametrize("metadata", [(("Upper-Case", "x"),), (("bad name", "x"),)])
def test_metadata_that_grpc_refuses(stub: Any, metadata: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Unary(ask(), metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "Invalid metadata"


def test_a_request_that_cannot_be_serialized(make: Maker, server: EchoServer) -> None:
    def refuse(message: Any) -> bytes:
        raise RuntimeError("not serializable")

    method = make(server.target).unary_unary("/meshtest.Echo/Unary", refuse, EchoReply.FromString)
    with pytest.raises(grpc.RpcError) as caught:
        method(ask())
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "Exception serializing request!"


def test_a_response_that_cannot_be_parsed(make: Maker, server: EchoServer) -> None:
    def refuse(message: bytes) -> Any:
        raise RuntimeError("not a message")

    method = make(server.target).unary_unary(
        "/meshtest.Echo/Unary", EchoRequest.SerializeToString, refuse
    )
    with pytest.raises(grpc.RpcError) as caught:
        method(ask())
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "Exception deserializing response!"


def test_unknown_method(make: Maker, server: EchoServer) -> None:
    method = make(server.target).unary_unary("/meshtest.Echo/Nothing")
    with pytest.raises(grpc.RpcError) as caught:
        method(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_methods_without_serializers_take_bytes(make: Maker, server: EchoServer) -> None:
    method = make(server.target).unary_unary("/meshtest.Echo/Unary")
    reply = method(EchoRequest(text="bytes").SerializeToString())
    assert EchoReply.FromString(reply).text == "bytes"


@pytest.mark.parametrize("compression", list(grpc.Compression))
def test_compression(make: Maker, server: EchoServer, compression: grpc.Compression) -> None:
    text = "x" * 10000
    stub = EchoStub(make(server.target, compression=compression))
    assert stub.Unary(ask(text)).text == text
    assert stub.Unary(ask(text), compression=grpc.Compression.Gzip).text == text
    assert texts(stub.Both(asks(text, text), compression=compression)) == [text, text]


def test_call_credentials_need_a_secure_channel(stub: Any) -> None:
    credentials = grpc.access_token_call_credentials("token")
    with pytest.raises(grpc.RpcError) as caught:
        stub.Unary(ask(), credentials=credentials)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    future = stub.Unary.future(ask(), credentials=credentials)
    assert future.exception().code() is grpc.StatusCode.UNAUTHENTICATED


# --- streams ---------------------------------------------------------------------------------


def test_unary_stream(stub: Any) -> None:
    call = stub.Down(ask("d", count=3), timeout=5)
    assert isinstance(call, grpc.Call)
    assert isinstance(call, grpc.Future)
    assert isinstance(call, grpc.RpcError)
    assert iter(call) is call
    assert next(call).text == "d0"
    assert call.next().text == "d1"
    assert call.is_active()
    assert call.running()
    assert 0 < call.time_remaining() <= 5
    assert texts(call) == ["d2"]
    assert call.code() is grpc.StatusCode.OK
    assert ("x-server", "a") in call.initial_metadata()
    assert ("x-trailing", "bye") in call.trailing_metadata()
    with pytest.raises(StopIteration):
        next(call)


def test_unary_stream_that_fails_after_answers(stub: Any) -> None:
    call = stub.Down(ask("d", count=2, code=NOT_FOUND, details="no more"))
    assert [next(call).text, next(call).text] == ["d0", "d1"]
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value is call
    assert call.code() is grpc.StatusCode.NOT_FOUND
    assert call.details() == "no more"
    assert call.done()
    assert call.exception() is call


def test_unary_stream_cancelled(stub: Any) -> None:
    call = stub.Down(ask(count=100, delay=0.05))
    next(call)
    ended = threading.Event()
    call.add_callback(ended.set)
    assert call.cancel() is True
    with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
        next(call)
    assert call.cancelled()
    assert call.code() is grpc.StatusCode.CANCELLED
    assert ended.wait(5)


def test_unary_stream_deadline(stub: Any) -> None:
    call = stub.Down(ask(count=100, delay=0.05), timeout=0.2)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_an_unread_stream_that_is_dropped_ends(stub: Any) -> None:
    call = stub.Down(ask(count=1000, delay=0.01))
    next(call)
    del call
    gc.collect()  # the fixture waits until its attempt has ended


def test_single_threaded_streams(make: Maker, server: EchoServer) -> None:
    options = [(grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1)]
    stub = EchoStub(make(server.target, options=options))
    assert texts(stub.Down(ask("d", count=2))) == ["d0", "d1"]
    call = stub.Down(ask(count=1000, delay=0.01))
    next(call)
    del call
    gc.collect()
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Down(ask(code=NOT_FOUND)))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_stream_unary(stub: Any) -> None:
    assert stub.Up(asks("a", "b", "c")).text == "a,b,c"
    reply, call = stub.Up.with_call(asks("a"), timeout=5)
    assert reply.text == "a"
    assert call.code() is grpc.StatusCode.OK
    assert ("x-server", "a") in call.initial_metadata()
    future = stub.Up.future(asks("a", "b"))
    assert future.result(timeout=5).text == "a,b"


def test_stream_unary_that_fails(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Up(iter([ask(), ask(code=NOT_FOUND, details="stop")]))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "stop"
    future = stub.Up.future(iter([ask(code=NOT_FOUND)]))
    assert future.exception(timeout=5) is future


def test_a_request_iterator_that_raises(stub: Any) -> None:
    def broken() -> Iterator[Any]:
        yield ask()
        raise RuntimeError("broken")

    with pytest.raises(grpc.RpcError) as caught:
        stub.Up(broken())
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert caught.value.details() == "Exception iterating requests!"


def test_stream_stream_back_and_forth(stub: Any) -> None:
    proceed = threading.Semaphore(1)

    def requests() -> Iterator[Any]:
        for number in range(3):
            assert proceed.acquire(timeout=5)
            yield ask(str(number))

    call = stub.Both(requests(), timeout=10)
    seen = []
    for reply in call:
        seen.append(reply.text)
        proceed.release()
    assert seen == ["0", "1", "2"]
    assert call.code() is grpc.StatusCode.OK
    assert ("x-trailing", "bye") in call.trailing_metadata()


def test_stream_stream_cancelled(stub: Any) -> None:
    stop = threading.Event()

    def requests() -> Iterator[Any]:
        yield ask()
        stop.wait(5)

    call = stub.Both(requests())
    next(call)
    call.cancel()
    assert call.code() is grpc.StatusCode.CANCELLED
    stop.set()


# --- readiness and connectivity --------------------------------------------------------------


def test_without_wait_for_ready_an_unreachable_server_is_unavailable(make: Maker) -> None:
    stub = EchoStub(make(DEAD))
    for wait_for_ready in (None, False):
        with pytest.raises(grpc.RpcError) as caught:
            stub.Unary(ask(), wait_for_ready=wait_for_ready, timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    future = stub.Unary.future(ask(), timeout=5)
    assert future.exception().code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Down(ask(), timeout=5))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Both(asks("x"), timeout=5))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_wait_for_ready_waits_until_the_deadline(make: Maker) -> None:
    stub = EchoStub(make(DEAD))
    more: Any = {"wait_for_ready": True, "timeout": 0.2}
    with pytest.raises(grpc.RpcError) as caught:
        stub.Unary(ask(), **more)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    for call in (stub.Unary.future(ask(), **more), stub.Down(ask(), **more)):
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert stub.Both(asks("x"), **more).code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_wait_for_ready_on_a_server_that_is_there(stub: Any) -> None:
    assert stub.Unary(ask(), wait_for_ready=True, timeout=5).text == "hi"
    assert stub.Unary.future(ask(), wait_for_ready=True, timeout=5).result().text == "hi"
    assert texts(stub.Down(ask("d", count=2), wait_for_ready=True)) == ["d0", "d1"]
    assert stub.Up(asks("a"), wait_for_ready=True).text == "a"
    assert texts(stub.Both(asks("a", "b"), wait_for_ready=True)) == ["a", "b"]


def test_channel_ready_future(make: Maker, server: EchoServer) -> None:
    channel = make(server.target)
    ready = grpc.channel_ready_future(channel)
    assert ready.result(timeout=5) is None
    assert ready.done()


def test_channel_ready_future_of_an_unreachable_server(make: Maker) -> None:
    ready = grpc.channel_ready_future(make(DEAD))
    with pytest.raises(grpc.FutureTimeoutError):
        ready.result(timeout=0.3)
    ready.cancel()


def test_connectivity(make: Maker, server: EchoServer) -> None:
    channel = make(server.target)
    states: list[grpc.ChannelConnectivity] = []
    channel.subscribe(states.append)
    wait_until(lambda: states == [grpc.ChannelConnectivity.IDLE])
    EchoStub(channel).Unary(ask())
    wait_until(lambda: states[-1] is grpc.ChannelConnectivity.READY)
    later: list[grpc.ChannelConnectivity] = []
    channel.subscribe(later.append, try_to_connect=True)
    wait_until(lambda: later == [grpc.ChannelConnectivity.READY])
    channel.unsubscribe(states.append)
    channel.unsubscribe(later.append)


def test_connectivity_of_an_unreachable_server(make: Maker) -> None:
    channel = make(DEAD)
    states: list[grpc.ChannelConnectivity] = []
    channel.subscribe(states.append, try_to_connect=True)
    wait_until(lambda: grpc.ChannelConnectivity.TRANSIENT_FAILURE in states)
    channel.unsubscribe(states.append)


# --- life ------------------------------------------------------------------------------------


def test_closed_channel(make: Maker, server: EchoServer) -> None:
    channel = make(server.target)
    stub = EchoStub(channel)
    stub.Unary(ask())
    channel.close()
    for call in (
        lambda: stub.Unary(ask()),
        lambda: stub.Unary.with_call(ask()),
        lambda: stub.Unary.future(ask()),
        lambda: stub.Down(ask()),
        lambda: stub.Up(asks("x")),
        lambda: stub.Both(asks("x")),
    ):
        with pytest.raises(ValueError, match="losed"):
            call()
    channel.close()


def test_closing_a_channel_ends_its_calls(make: Maker, server: EchoServer) -> None:
    channel = make(server.target)
    stub = EchoStub(channel)
    future = stub.Unary.future(ask(delay=2))
    stream = stub.Down(ask(count=100, delay=0.02))
    next(stream)
    channel.close()
    assert future.code() is grpc.StatusCode.CANCELLED
    assert "Channel closed!" in future.details()
    with pytest.raises(grpc.RpcError):
        list(stream)
    assert stream.code() is grpc.StatusCode.CANCELLED


def test_context_manager(make: Maker, server: EchoServer) -> None:
    with make(server.target) as channel:
        stub = EchoStub(channel)
        assert stub.Unary(ask()).text == "hi"
    with pytest.raises(ValueError, match="losed"):
        stub.Unary(ask())


def test_intercepted_channel(make: Maker, server: EchoServer) -> None:
    class Adds(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
        def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            return continuation(_with_metadata(details), request)

        def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
            return continuation(_with_metadata(details), requests)

    def _with_metadata(details: Any) -> Any:
        return details._replace(metadata=(("x-added", "1"),))

    stub = EchoStub(grpc.intercept_channel(make(server.target), Adds()))
    added = ("x-added", b"1")
    replies = [stub.Unary(ask()), stub.Unary.with_call(ask())[0], stub.Unary.future(ask()).result()]
    for reply in (*replies, *stub.Both(asks("x"))):
        assert added in [(h.name, h.value) for h in reply.metadata]
    assert stub.Up(asks("x")).text == "x"
    with pytest.raises(grpc.RpcError) as caught:
        stub.Unary(ask(code=NOT_FOUND))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_many_threads_share_a_stub(stub: Any) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                text = f"{number}-{turn}"
                assert stub.Unary(ask(text), timeout=10).text == text
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_options_reach_the_channel(make: Maker, server: EchoServer) -> None:
    options = [("grpc.primary_user_agent", "me/1"), ("grpc.default_authority", "own:1")]
    reply = EchoStub(make(server.target, options=options)).Unary(ask())
    assert reply.authority == "own:1"
    agent = next(h.value for h in reply.metadata if h.name == "user-agent")
    assert agent.startswith(b"me/1")


def test_local_channel_credentials(make: Maker) -> None:
    with EchoServer("secure", credentials=grpc.local_server_credentials()) as server:
        channel = make(server.target, credentials=grpc.local_channel_credentials())
        assert EchoStub(channel).Unary(ask(), timeout=5).text == "hi"
