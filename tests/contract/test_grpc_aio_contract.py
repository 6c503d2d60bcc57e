"""What a user of an aio gRPC channel may rely on: first on grpcio itself, then through the mesh."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from meshsdk.grpc_aio import MeshAioChannel
from tests.support.echo_grpc import EchoReply, EchoRequest, EchoServer, EchoStub
from tests.support.grpc_clients import KINDS, Maker

NOT_FOUND = grpc.StatusCode.NOT_FOUND.value[0]
DEAD = "127.0.0.1:1"


@pytest.fixture(scope="module")
def server() -> Iterator[EchoServer]:
    with EchoServer("a") as made:
        yield made


async def eventually(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture(params=KINDS)
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Maker]:
    def raw(target: str, credentials: Any = None, **more: Any) -> grpc.aio.Channel:
        if credentials is not None:
            return grpc.aio.secure_channel(target, credentials, **more)
        return grpc.aio.insecure_channel(target, **more)

    maker = Maker(request.param, raw, MeshAioChannel)
    yield maker
    for channel in maker.channels:
        await channel.close()
    await eventually(lambda: maker.active() == 0)


@pytest.fixture
def stub(make: Maker, server: EchoServer) -> Any:
    return EchoStub(make(server.target))


def ask(text: str = "hi", **more: Any) -> Any:
    return EchoRequest(text=text, **more)


def asks(*texts: str) -> list[Any]:
    return [ask(text) for text in texts]


async def stream(*texts: str) -> AsyncIterator[Any]:
    for text in texts:
        yield ask(text)


# --- unary-unary -----------------------------------------------------------------------------


async def test_unary_call(stub: Any) -> None:
    call = stub.Unary(ask(), timeout=5)
    assert isinstance(call, grpc.aio.UnaryUnaryCall)
    assert isinstance(call, grpc.aio.Call)
    reply = await call
    assert reply.text == "hi"
    assert await call is reply
    assert await call.code() is grpc.StatusCode.OK
    assert await call.details() == ""
    assert (await call.initial_metadata())["x-server"] == "a"
    trailing = await call.trailing_metadata()
    assert isinstance(trailing, grpc.aio.Metadata)
    assert trailing["x-bytes-bin"] == b"\x00\xff"
    assert call.done()
    assert not call.cancelled()
    assert call.cancel() is False
    assert 0 < call.time_remaining() <= 5


async def test_debug_error_string_of_a_good_call(stub: Any) -> None:
    call = stub.Unary(ask())
    await call
    assert not await call.debug_error_string()


async def test_arguments_are_keyword_only(stub: Any) -> None:
    with pytest.raises(TypeError):
        stub.Unary(ask(), 5.0)


async def test_wait_for_connection(stub: Any) -> None:
    call = stub.Unary(ask())
    await call.wait_for_connection()
    assert (await call).text == "hi"
    call = stub.Down(ask("d", count=1))
    await call.wait_for_connection()
    assert [reply.text async for reply in call] == ["d0"]


async def test_done_callback(stub: Any) -> None:
    call = stub.Unary(ask(delay=0.02))
    seen: list[Any] = []
    call.add_done_callback(seen.append)
    assert not call.done()
    await call
    await eventually(lambda: seen)
    assert seen == [call]


async def test_a_call_that_nobody_awaits_goes_out(stub: Any, server: EchoServer) -> None:
    before = server.calls
    stub.Unary(ask())
    await eventually(lambda: server.calls == before + 1)


async def test_failure(stub: Any) -> None:
    call = stub.Unary(ask(code=NOT_FOUND, details="no such book"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    assert isinstance(error, grpc.RpcError)
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "no such book"
    assert "no such book" in error.debug_error_string()
    assert error.initial_metadata()["x-server"] == "a"
    assert error.trailing_metadata()["x-trailing"] == "bye"
    assert await call.code() is grpc.StatusCode.NOT_FOUND
    assert await call.details() == "no such book"
    assert call.done()
    assert not call.cancelled()
    with pytest.raises(grpc.aio.AioRpcError):
        await call


async def test_failure_without_awaiting(stub: Any) -> None:
    call = stub.Unary(ask(code=NOT_FOUND))
    assert await call.code() is grpc.StatusCode.NOT_FOUND
    assert (await call.initial_metadata())["x-server"] == "a"
    assert (await call.trailing_metadata())["x-trailing"] == "bye"


async def test_cancel(stub: Any) -> None:
    call = stub.Unary(ask(delay=1))
    seen: list[Any] = []
    call.add_done_callback(seen.append)
    await asyncio.sleep(0)
    assert call.cancel() is True
    with pytest.raises(asyncio.CancelledError):
        await call
    assert call.cancelled()
    assert call.done()
    assert await call.code() is grpc.StatusCode.CANCELLED
    assert await call.details() == "Locally cancelled by application!"
    await eventually(lambda: seen)
    assert call.cancel() is False


async def test_cancel_at_once(stub: Any) -> None:
    call = stub.Unary(ask())
    assert call.cancel() is True
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await call.code() is grpc.StatusCode.CANCELLED


async def test_cancelling_who_awaits_cancels_the_call(stub: Any) -> None:
    call = stub.Unary(ask(delay=1))

    async def waiter() -> None:
        await call

    task = asyncio.create_task(waiter())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(call.done)
    assert await call.code() is grpc.StatusCode.CANCELLED


async def test_cancelling_who_asks_for_the_code_does_not_cancel_the_call(stub: Any) -> None:
    call = stub.Unary(ask(delay=0.2))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call.code(), 0.02)
    assert (await call).text == "hi"


async def test_deadline(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Unary(ask(delay=2), timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_time_remaining(stub: Any) -> None:
    call = stub.Unary(ask(delay=0.05), timeout=5)
    assert 0 < call.time_remaining() <= 5
    await call
    call = stub.Unary(ask(delay=0.05))
    assert call.time_remaining() is None
    await call


@pytest.mark.parametrize(
    "metadata",
    [
        (("end-user", "jason"), ("x-raw-bin", b"\x01\xfe")),
        grpc.aio.Metadata(("end-user", "jason"), ("x-raw-bin", b"\x01\xfe")),
    ],
)
async def test_metadata_reaches_the_server(stub: Any, metadata: Any) -> None:
    reply = await stub.Unary(ask(), metadata=metadata)
    got = [(h.name, h.value) for h in reply.metadata]
    assert ("end-user", b"jason") in got
    assert ("x-raw-bin", b"\x01\xfe") in got


async def test_call_credentials_need_a_secure_channel(stub: Any) -> None:
    credentials = grpc.access_token_call_credentials("token")
    with pytest.raises(grpc.aio.UsageError, match="secure"):
        stub.Unary(ask(), credentials=credentials)


@pytest.mark.parametrize("compression", list(grpc.Compression))
async def test_compression(make: Maker, server: EchoServer, compression: Any) -> None:
    text = "x" * 10000
    stub = EchoStub(make(server.target, compression=compression))
    assert (await stub.Unary(ask(text))).text == text
    assert (await stub.Unary(ask(text), compression=grpc.Compression.Gzip)).text == text
    replies = stub.Both(stream(text, text), compression=compression)
    assert [reply.text async for reply in replies] == [text, text]


async def test_methods_without_serializers_take_bytes(make: Maker, server: EchoServer) -> None:
    method = make(server.target).unary_unary("/meshtest.Echo/Unary")
    reply = await method(EchoRequest(text="bytes").SerializeToString())
    assert EchoReply.FromString(reply).text == "bytes"


# --- streams ---------------------------------------------------------------------------------


async def test_unary_stream_by_iteration(stub: Any) -> None:
    call = stub.Down(ask("d", count=3), timeout=5)
    assert isinstance(call, grpc.aio.UnaryStreamCall)
    assert [reply.text async for reply in call] == ["d0", "d1", "d2"]
    assert await call.code() is grpc.StatusCode.OK
    assert (await call.initial_metadata())["x-server"] == "a"
    assert (await call.trailing_metadata())["x-trailing"] == "bye"


async def test_unary_stream_by_read(stub: Any) -> None:
    call = stub.Down(ask("d", count=2))
    assert (await call.read()).text == "d0"
    assert (await call.read()).text == "d1"
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_reading_in_two_styles_is_refused(stub: Any) -> None:
    call = stub.Down(ask("d", count=2))
    await call.read()
    with pytest.raises(grpc.aio.UsageError):
        async for _ in call:
            pass
    call.cancel()


async def test_unary_stream_that_fails_after_answers(stub: Any) -> None:
    call = stub.Down(ask("d", count=1, code=NOT_FOUND, details="no more"))
    assert (await anext(aiter(call))).text == "d0"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(call))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    call = stub.Down(ask("d", code=NOT_FOUND))
    with pytest.raises(grpc.aio.AioRpcError):
        await call.read()


async def test_unary_stream_cancelled(stub: Any) -> None:
    call = stub.Down(ask(count=100, delay=0.05))
    await call.read()
    assert call.cancel() is True
    with pytest.raises(asyncio.CancelledError):
        await call.read()
    assert await call.code() is grpc.StatusCode.CANCELLED


async def test_an_unread_stream_that_is_dropped_ends(stub: Any) -> None:
    call = stub.Down(ask(count=1000, delay=0.01))
    await call.read()
    del call
    gc.collect()  # the fixture waits until its attempt has ended


async def test_stream_unary(stub: Any) -> None:
    call = stub.Up(stream("a", "b"), timeout=5)
    assert isinstance(call, grpc.aio.StreamUnaryCall)
    assert (await call).text == "a,b"
    assert (await stub.Up(iter(asks("a", "b")))).text == "a,b"


async def test_stream_unary_by_write(stub: Any) -> None:
    call = stub.Up()
    await call.write(ask("a"))
    await call.write(ask("b"))
    await call.done_writing()
    await call.done_writing()
    assert (await call).text == "a,b"
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(ask("c"))


async def test_stream_unary_that_fails(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Up(iter([ask(code=NOT_FOUND, details="stop")]))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_request_iterator_that_raises(stub: Any) -> None:
    async def broken() -> AsyncIterator[Any]:
        yield ask()
        raise RuntimeError("broken")

    call = stub.Up(broken())
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await call.code() is grpc.StatusCode.CANCELLED


async def test_stream_stream_back_and_forth(stub: Any) -> None:
    call = stub.Both(timeout=10)
    assert isinstance(call, grpc.aio.StreamStreamCall)
    await call.wait_for_connection()
    for text in ("0", "1", "2"):
        await call.write(ask(text))
        assert (await call.read()).text == text
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_stream_stream_by_iteration(stub: Any) -> None:
    call = stub.Both(stream("a", "b"))
    assert [reply.text async for reply in call] == ["a", "b"]


async def test_stream_stream_cancelled(stub: Any) -> None:
    call = stub.Both()
    await call.write(ask())
    await call.read()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.read()


# --- readiness and connectivity --------------------------------------------------------------


async def test_without_wait_for_ready_an_unreachable_server_is_unavailable(make: Maker) -> None:
    stub = EchoStub(make(DEAD))
    for call in (stub.Unary(ask()), stub.Unary(ask(), wait_for_ready=False), stub.Up(stream("x"))):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    for call in (stub.Down(ask()), stub.Both(stream("x"))):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_wait_for_ready_waits_until_the_deadline(make: Maker) -> None:
    stub = EchoStub(make(DEAD))
    more: Any = {"wait_for_ready": True, "timeout": 0.2}
    for call in (stub.Unary(ask(), **more), stub.Down(ask(), **more), stub.Up(stream("x"), **more)):
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_wait_for_ready_on_a_server_that_is_there(stub: Any) -> None:
    more: Any = {"wait_for_ready": True, "timeout": 5}
    assert (await stub.Unary(ask(), **more)).text == "hi"
    assert [reply.text async for reply in stub.Down(ask("d", count=1), **more)] == ["d0"]
    assert (await stub.Up(stream("a"), **more)).text == "a"


async def test_channel_ready(make: Maker, server: EchoServer) -> None:
    channel = make(server.target)
    assert channel.get_state() is grpc.ChannelConnectivity.IDLE
    await asyncio.wait_for(channel.channel_ready(), 5)
    assert channel.get_state() is grpc.ChannelConnectivity.READY


async def test_wait_for_state_change(make: Maker, server: EchoServer) -> None:
    channel = make(server.target)
    waiting = asyncio.create_task(channel.wait_for_state_change(grpc.ChannelConnectivity.IDLE))
    await EchoStub(channel).Unary(ask())
    await asyncio.wait_for(waiting, 5)
    assert channel.get_state() is not grpc.ChannelConnectivity.IDLE


async def test_channel_ready_of_an_unreachable_server(make: Maker) -> None:
    channel = make(DEAD)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(channel.channel_ready(), 0.3)
    assert channel.get_state() is not grpc.ChannelConnectivity.READY


# --- life ------------------------------------------------------------------------------------


async def test_closed_channel(make: Maker, server: EchoServer) -> None:
    channel = make(server.target)
    stub = EchoStub(channel)
    await stub.Unary(ask())
    await channel.close()
    await channel.close()
    assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
    for call in (
        lambda: stub.Unary(ask()),
        lambda: stub.Down(ask()),
        lambda: stub.Up(stream("x")),
        lambda: stub.Both(stream("x")),
    ):
        with pytest.raises(grpc.aio.UsageError):
            call()


async def test_closing_a_channel_cancels_its_calls(make: Maker, server: EchoServer) -> None:
    channel = make(server.target)
    call = EchoStub(channel).Unary(ask(delay=2))
    await asyncio.sleep(0.05)
    await channel.close()
    assert call.cancelled()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_closing_with_grace_lets_calls_finish(make: Maker, server: EchoServer) -> None:
    channel = make(server.target)
    call = EchoStub(channel).Unary(ask(delay=0.1))
    await asyncio.sleep(0.02)
    await channel.close(grace=5)
    assert (await call).text == "hi"


async def test_negative_grace(make: Maker, server: EchoServer) -> None:
    channel = make(server.target)
    with pytest.raises(ValueError, match="grace"):
        await channel.close(grace=-1)


async def test_context_manager(make: Maker, server: EchoServer) -> None:
    async with make(server.target) as channel:
        stub = EchoStub(channel)
        assert (await stub.Unary(ask())).text == "hi"
    with pytest.raises(grpc.aio.UsageError):
        stub.Unary(ask())


async def test_options_reach_the_channel(make: Maker, server: EchoServer) -> None:
    options = [("grpc.primary_user_agent", "me/1"), ("grpc.default_authority", "own:1")]
    reply = await EchoStub(make(server.target, options=options)).Unary(ask())
    assert reply.authority == "own:1"
    agent = next(h.value for h in reply.metadata if h.name == "user-agent")
    assert agent.startswith(b"me/1")


async def test_local_channel_credentials(make: Maker) -> None:
    with EchoServer("secure", credentials=grpc.local_server_credentials()) as server:
        channel = make(server.target, credentials=grpc.local_channel_credentials())
        assert (await EchoStub(channel).Unary(ask(), timeout=5)).text == "hi"


async def test_many_calls_at_once(stub: Any) -> None:
    replies = await asyncio.gather(*(stub.Unary(ask(str(n)), timeout=10) for n in range(100)))
    assert [reply.text for reply in replies] == [str(n) for n in range(100)]


# --- interceptors ----------------------------------------------------------------------------


class _Adds:
    """Adds a header, and notes what it saw."""

    def __init__(self) -> None:
        self.methods: list[Any] = []

    def details(self, details: Any) -> Any:
        self.methods.append(details.method)
        metadata = grpc.aio.Metadata(*(details.metadata or ()), ("x-added", "1"))
        return details._replace(metadata=metadata)


class UnaryAdds(_Adds, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(self.details(details), request)


class DownAdds(_Adds, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(self.details(details), request)


class UpAdds(_Adds, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
        return await continuation(self.details(details), requests)


class BothAdds(_Adds, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return await continuation(self.details(details), requests)


async def test_interceptors(make: Maker, server: EchoServer) -> None:
    adds = [UnaryAdds(), UnaryAdds(), DownAdds(), UpAdds(), BothAdds()]
    stub = EchoStub(make(server.target, interceptors=adds))
    call = stub.Unary(ask(), timeout=5, metadata=(("x-mine", "1"),))
    assert isinstance(call, grpc.aio.UnaryUnaryCall)
    replies = [await call, await stub.Up(stream("x"))]
    replies += [reply async for reply in stub.Down(ask("d", count=1))]
    replies += [reply async for reply in stub.Both(stream("x"))]
    assert len(replies) == 4
    for reply in replies:
        assert ("x-added", b"1") in [(h.name, h.value) for h in reply.metadata]
    assert [h.name for h in replies[0].metadata].count("x-added") == 2
    assert adds[0].methods == [b"/meshtest.Echo/Unary"]
    assert await call.code() is grpc.StatusCode.OK
    assert (await call.initial_metadata())["x-server"] == "a"


async def test_intercepted_writes(make: Maker, server: EchoServer) -> None:
    stub = EchoStub(make(server.target, interceptors=[BothAdds(), UpAdds()]))
    call = stub.Both()
    await call.write(ask("a"))
    assert (await call.read()).text == "a"
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    call = stub.Up()
    await call.write(ask("a"))
    await call.done_writing()
    assert (await call).text == "a"


async def test_intercepted_failure(make: Maker, server: EchoServer) -> None:
    stub = EchoStub(make(server.target, interceptors=[UnaryAdds(), DownAdds()]))
    call = stub.Unary(ask(code=NOT_FOUND, details="gone"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.details() == "gone"
    assert await call.code() is grpc.StatusCode.NOT_FOUND
    call = stub.Unary(ask(delay=1))
    await asyncio.sleep(0.05)
    assert call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_an_interceptor_may_answer_itself(make: Maker, server: EchoServer) -> None:
    class Answers(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            return EchoReply(text="from the interceptor")

    stub = EchoStub(make(server.target, interceptors=[Answers()]))
    assert (await stub.Unary(ask())).text == "from the interceptor"


async def test_something_that_is_no_interceptor(make: Maker, server: EchoServer) -> None:
    with pytest.raises(ValueError, match="Interceptor"):
        make(server.target, interceptors=[object()])
