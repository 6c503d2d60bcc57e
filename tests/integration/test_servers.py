"""Servers in the mesh: traces through two hops, registration, and an end without failed calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent import futures
from typing import Any

import grpc
import httpx
import pytest
import uvicorn
from flask import Flask, request
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from werkzeug.serving import make_server

from meshsdk import grpc_server, propagation, serving
from meshsdk.asgi import MeshMiddleware as AsgiMiddleware
from meshsdk.errors import ConfigurationError
from meshsdk.mesh import Mesh
from meshsdk.wsgi import MeshMiddleware as WsgiMiddleware
from tests.support.ads import AdsServer, wait_until
from tests.support.apps.grpc_app import Asking, AskingAio
from tests.support.echo_grpc import EchoReply, EchoRequest, EchoServer, EchoStub
from tests.support.proto import echo_pb2_grpc
from tests.support.resources import service
from tests.support.servers import (
    TRACES,
    HeaderServer,
    Program,
    deregistered,
    free_port,
    mesh_environ,
    registered,
    traces_of,
)

FAR = "http://far.test/"
PAIRS = tuple(TRACES.items())


@pytest.fixture
def far(ads_server: AdsServer) -> Iterator[None]:
    """`far.test:80` over HTTP and `echo.test:50051` over gRPC: both say what they received."""
    with HeaderServer() as http, EchoServer() as echo:
        ads_server.set(service("far.test:80", [("127.0.0.1", http.port)]))
        ads_server.set(service("echo.test:50051", [("127.0.0.1", echo.port)]))
        yield


@pytest.fixture
def registering(ads_server: AdsServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mesh]:
    monkeypatch.setenv("MESHSDK_DRAIN", "0.2")
    with Mesh(
        bootstrap=ads_server.bootstrap, namespace="default", auto_register_group="shop"
    ) as mesh:
        yield mesh


def get(url: str, headers: dict[str, str] | None = None) -> Any:
    call = urllib.request.Request(url, headers=headers or {})
    with urllib.request.urlopen(call, timeout=10) as answer:
        return json.load(answer)


# --- ASGI ------------------------------------------------------------------------------------


def asking_app(mesh: Mesh) -> Starlette:
    """Async, in a thread, streamed, over gRPC: with plain clients on the mesh's transports."""

    async def asynchronous(_request: Request) -> Response:
        async with httpx.AsyncClient(transport=mesh.async_transport()) as client:
            return JSONResponse((await client.get(FAR)).json())

    def in_thread(_request: Request) -> Response:
        with httpx.Client(transport=mesh.transport()) as client:
            return JSONResponse(client.get(FAR).json())

    async def streamed(_request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            await asyncio.sleep(0)
            async with httpx.AsyncClient(transport=mesh.async_transport()) as client:
                yield (await client.get(FAR)).content

        return StreamingResponse(chunks())

    async def over_grpc(_request: Request) -> Response:
        async with mesh.aio_channel("echo.test:50051") as channel:
            reply = await EchoStub(channel).Unary(EchoRequest(), timeout=10)
        return JSONResponse({item.name: item.value.decode() for item in reply.metadata})

    def over_sync_grpc(_request: Request) -> Response:
        with mesh.channel("echo.test:50051") as channel:
            reply = EchoStub(channel).Unary(EchoRequest(), timeout=10)
        return JSONResponse({item.name: item.value.decode() for item in reply.metadata})

    async def own(request: Request) -> Response:
        return JSONResponse(dict(request.headers))

    return Starlette(
        routes=[
            Route("/async", asynchronous),
            Route("/thread", in_thread),
            Route("/stream", streamed),
            Route("/grpc-aio", over_grpc),
            Route("/grpc", over_sync_grpc),
            Route("/own", own),
        ]
    )


@contextlib.contextmanager
def uvicorn_serving(app: Any, port: int, **options: Any) -> Iterator[uvicorn.Server]:
    config = uvicorn.Config(app, port=port, log_level="warning", **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), 10)
        yield server
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def asgi_url(mesh: Mesh, far: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("MESHSDK_PROPAGATE", "end-user")
    port = free_port()
    with uvicorn_serving(mesh.asgi(asking_app(mesh)), port):
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("path", ["async", "thread", "stream", "grpc-aio", "grpc"])
def test_asgi_carries_traces_on(asgi_url: str, path: str) -> None:
    seen = get(f"{asgi_url}/{path}", {**TRACES, "end-user": "jason", "x-other": "no"})
    assert traces_of(seen) == TRACES
    assert seen["end-user"] == "jason"
    assert "x-other" not in seen


def test_asgi_makes_a_request_id_that_the_application_sees_too(asgi_url: str) -> None:
    assert len(get(f"{asgi_url}/async")["x-request-id"]) == 36
    assert len(get(f"{asgi_url}/own")["x-request-id"]) == 36
    assert get(f"{asgi_url}/own", {"x-request-id": "mine"})["x-request-id"] == "mine"


def test_concurrent_requests_keep_their_traces_apart(asgi_url: str) -> None:
    def ask(number: int) -> bool:
        path = ("async", "thread", "grpc", "grpc-aio")[number % 4]
        seen = get(f"{asgi_url}/{path}", {"x-request-id": f"id-{number}"})
        return bool(seen["x-request-id"] == f"id-{number}")

    with futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(40)))


async def test_asgi_passes_everything_else_through() -> None:
    seen: list[str] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope["type"])
        if scope["type"] == "websocket":
            seen.append(dict(propagation.outgoing())["x-request-id"])

    async def nothing(*_args: Any) -> Any: ...

    middleware = AsgiMiddleware(app, register=False)
    await middleware({"type": "lifespan"}, nothing, nothing)
    await middleware({"type": "other"}, nothing, nothing)
    headers = [(b"x-request-id", b"5")]
    await middleware({"type": "websocket", "headers": headers}, nothing, nothing)
    assert seen == ["lifespan", "other", "websocket", "5"]
    assert propagation.outgoing() == ()


def test_asgi_registers_when_it_listens_until_shutdown(
    registering: Mesh, ads_server: AdsServer
) -> None:
    port = free_port()
    app = registering.asgi(asking_app(registering), port=port)
    with uvicorn_serving(app, port):
        wait_until(lambda: registered(ads_server), 10)
        assert registered(ads_server)[-1]["ports"] == {"http": port}
        assert registered(ads_server)[-1]["group"] == "shop"
        serving.set_health("UNHEALTHY")
        wait_until(lambda: any(r.error_detail.code == 13 for r in ads_server.health), 5)
    wait_until(lambda: deregistered(ads_server) == 1, 5)
    assert serving.registered_ports() == []


def test_asgi_without_lifespan_registers_at_the_first_request(
    registering: Mesh, ads_server: AdsServer
) -> None:
    port = free_port()
    app = registering.asgi(asking_app(registering))
    with uvicorn_serving(app, port, lifespan="off"):
        assert not registered(ads_server)
        get(f"http://127.0.0.1:{port}/own")
        wait_until(lambda: registered(ads_server), 10)
        assert registered(ads_server)[-1]["ports"] == {"http": port}


def test_an_application_that_does_not_start_is_not_registered(
    registering: Mesh, ads_server: AdsServer
) -> None:
    @contextlib.asynccontextmanager
    async def failing(_app: Starlette) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    port = free_port()
    app = registering.asgi(Starlette(lifespan=failing), port=port)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    with futures.ThreadPoolExecutor(1) as pool, pytest.raises(SystemExit):
        pool.submit(server.run).result(10)
    assert serving.registered_ports() == []
    assert not registered(ads_server)


def test_a_wrong_environment_is_said_where_the_middleware_is_made(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHSDK_PORTS", "http")
    with pytest.raises(ConfigurationError, match="MESHSDK_PORTS"):
        mesh.asgi(lambda: None)
    with pytest.raises(ConfigurationError, match="MESHSDK_PORTS"):
        mesh.wsgi(lambda: None)


# --- WSGI ------------------------------------------------------------------------------------


@contextlib.contextmanager
def wsgi_serving(app: Any, port: int) -> Iterator[str]:
    server = make_server("127.0.0.1", port, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(10)


def flask_app(mesh: Mesh) -> Flask:
    app = Flask(__name__)
    client = httpx.Client(transport=mesh.transport())

    @app.get("/call")
    def call() -> Any:
        return client.get(FAR).json()

    @app.get("/stream")
    def stream() -> Iterable[str]:
        def chunks() -> Iterator[str]:
            yield ""
            yield client.get(FAR).text

        return chunks()

    @app.get("/own")
    def own() -> dict[str, str]:
        return {name.lower(): value for name, value in request.headers.items()}

    return app


@pytest.mark.parametrize("path", ["call", "stream"])
def test_wsgi_carries_traces_on(mesh: Mesh, far: None, path: str) -> None:
    with wsgi_serving(mesh.wsgi(flask_app(mesh)), 0) as url:
        assert traces_of(get(f"{url}/{path}", TRACES)) == TRACES
        assert len(get(f"{url}/own")["x-request-id"]) == 36
    assert propagation.outgoing() == ()


def test_wsgi_leaves_bodies_that_servers_send_faster_alone() -> None:
    class FileWrapper:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"file"])

    for body in ([b"list"], FileWrapper()):
        app = WsgiMiddleware(lambda _environ, _start, body=body: body, register=False)  # type: ignore[misc]
        assert app({"wsgi.file_wrapper": FileWrapper}, None) is body


def test_wsgi_closes_the_body_in_its_own_context() -> None:
    seen: list[Any] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            yield dict(propagation.outgoing())["x-request-id"].encode()

        def close(self) -> None:
            seen.append(dict(propagation.outgoing())["x-request-id"])

    app = WsgiMiddleware(lambda _environ, _start: Body(), register=False)
    body: Any = app({"HTTP_X_REQUEST_ID": "7"}, None)
    assert list(body) == [b"7"]
    body.close()
    assert seen == ["7"]


def test_wsgi_registers_as_soon_as_its_port_accepts(
    registering: Mesh, ads_server: AdsServer
) -> None:
    port = free_port()
    app = registering.wsgi(flask_app(registering), port=port, port_name="http-web")
    assert not registered(ads_server)
    with wsgi_serving(app, port):
        wait_until(lambda: registered(ads_server), 10)
    assert registered(ads_server)[-1]["ports"] == {"http-web": port}


# --- SIGTERM, without `run` -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uvicorn", "gunicorn"])
def test_a_service_in_the_mesh_leaves_it_before_it_stops(ads_server: AdsServer, kind: str) -> None:
    port = free_port()
    if kind == "uvicorn":
        command, more = ["-m", "tests.support.apps.meshed_app"], {}
    else:
        command = [
            "-m",
            "gunicorn",
            "-b",
            f"127.0.0.1:{port}",
            "tests.support.apps.meshed_app:wsgi",
        ]
        more = {"TEST_WSGI": "1"}
    with (
        mesh_environ(ads_server, TEST_PORT=str(port), **more) as environ,
        Program(*command, environ=environ) as program,
    ):
        wait_until(lambda: registered(ads_server), 20, "registration")
        assert registered(ads_server)[-1]["ports"] == {"http": port}
        program.terminate()
        wait_until(lambda: deregistered(ads_server) == 1, 10, "deregistration")
        assert get(f"http://127.0.0.1:{port}/pid") > 0
        assert program.wait() == (-signal.SIGTERM if kind == "uvicorn" else 0), program.text
        assert "Traceback" not in program.text


def test_a_second_sigterm_does_not_wait(ads_server: AdsServer) -> None:
    port = free_port()
    with (
        mesh_environ(ads_server, TEST_PORT=str(port), MESHSDK_DRAIN="600") as environ,
        Program("-m", "tests.support.apps.meshed_app", environ=environ) as program,
    ):
        wait_until(lambda: registered(ads_server), 20, "registration")
        program.terminate()
        wait_until(lambda: deregistered(ads_server) == 1, 10, "deregistration")
        program.terminate()
        assert program.wait() == -signal.SIGTERM, program.text


# --- gRPC ------------------------------------------------------------------------------------


def names_and_values(reply: Any) -> dict[str, str]:
    return {i.name: i.value.decode() for i in reply.metadata if not i.name.endswith("-bin")}


def calls_of_every_arity(stub: EchoStub) -> Iterator[Any]:
    """What the far end received, for each arity and each part of a stream."""
    metadata = (*PAIRS, ("x-tenant-bin", b"\x00\x01"), ("x-other", "no"))
    rest: dict[str, Any] = {"timeout": 10, "metadata": metadata}
    yield stub.Unary(EchoRequest(text="a"), **rest)
    yield from stub.Down(EchoRequest(text="a", count=3), **rest)
    yield stub.Up(iter([EchoRequest(text="a")] * 2), **rest)
    yield from stub.Both(iter([EchoRequest(text="a")] * 3), **rest)


def check_traces(replies: Iterable[Any], count: int) -> None:
    seen = list(replies)
    assert len(seen) == count
    for reply in seen:
        assert traces_of(names_and_values(reply)) == TRACES
        assert "x-other" not in names_and_values(reply)
        binary = {i.name: i.value for i in reply.metadata if i.name.endswith("-bin")}
        assert binary == {"x-tenant-bin": b"\x00\x01"}


@pytest.fixture
def binary_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """`grpc-trace-bin` itself never reaches a server in Python: gRPC's core keeps it."""
    monkeypatch.setenv("MESHSDK_PROPAGATE", "x-tenant-bin")


@pytest.mark.usefixtures("binary_too")
def test_a_sync_grpc_server_carries_traces_on(mesh: Mesh, far: None) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(4), interceptors=[mesh.server_interceptor()])
    with mesh.channel("echo.test:50051") as onward:
        echo_pb2_grpc.add_EchoServicer_to_server(Asking(onward), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                check_traces(calls_of_every_arity(EchoStub(channel)), 8)
                without = names_and_values(EchoStub(channel).Unary(EchoRequest(), timeout=10))
                assert len(without["x-request-id"]) == 36
                assert "traceparent" not in without
        finally:
            server.stop(None).wait()


@pytest.mark.usefixtures("binary_too")
@pytest.mark.parametrize("flavour", ["async", "sync handlers"])
async def test_an_aio_grpc_server_carries_traces_on(mesh: Mesh, far: None, flavour: str) -> None:
    server = grpc.aio.server(
        futures.ThreadPoolExecutor(4), interceptors=[mesh.aio_server_interceptor()]
    )
    if flavour == "async":
        servicer: Any = AskingAio(mesh.aio_channel("echo.test:50051"))
    else:
        servicer = Asking(mesh.channel("echo.test:50051"))
    echo_pb2_grpc.add_EchoServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    def call() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            check_traces(calls_of_every_arity(EchoStub(channel)), 8)

    try:
        await asyncio.to_thread(call)
    finally:
        await server.stop(None)


def test_errors_and_unknown_methods_stay_what_they_are(mesh: Mesh) -> None:
    class Failing(echo_pb2_grpc.EchoServicer):
        def Unary(self, request: Any, context: Any) -> Any:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such book")

        def Down(self, request: Any, context: Any) -> Any:
            yield request
            raise ValueError("broken")

    server = grpc.server(futures.ThreadPoolExecutor(2), interceptors=[mesh.server_interceptor()])
    echo_pb2_grpc.add_EchoServicer_to_server(Failing(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = EchoStub(channel)
        with pytest.raises(grpc.RpcError) as unary:
            stub.Unary(EchoRequest(), timeout=10)
        assert (unary.value.code(), unary.value.details()) == (
            grpc.StatusCode.NOT_FOUND, "no such book",
        )  # fmt: skip
        with pytest.raises(grpc.RpcError) as down:
            list(stub.Down(EchoRequest(), timeout=10))
        assert down.value.code() is grpc.StatusCode.UNKNOWN
        with pytest.raises(grpc.RpcError) as unknown:
            channel.unary_unary("/no.Such/Method")(b"", timeout=10)
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED
    server.stop(None).wait()


class Slow(echo_pb2_grpc.EchoServicer):
    """Holds a call until the test lets it go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()

    def Unary(self, request: Any, context: Any) -> Any:
        self.entered.set()
        self.release.wait(10)
        return EchoReply(text="done")


def test_a_grpc_server_is_registered_and_leaves_before_it_stops(
    registering: Mesh, ads_server: AdsServer
) -> None:
    slow = Slow()
    server = grpc_server.server(futures.ThreadPoolExecutor(4), mesh=registering)
    echo_pb2_grpc.add_EchoServicer_to_server(slow, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.add_insecure_port("unix-abstract:meshsdk-test-" + str(port))
    assert not registered(ads_server)
    server.start()
    wait_until(lambda: registered(ads_server), 10)
    assert registered(ads_server)[-1]["ports"] == {"grpc": port}
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        running = EchoStub(channel).Unary.future(EchoRequest(), timeout=10)
        assert slow.entered.wait(5)
        stopped = server.stop(5)
        wait_until(lambda: deregistered(ads_server) == 1, 5)
        # Gone from the registry, it still takes the calls of clients that do not know yet.
        late = EchoStub(channel).Unary.future(EchoRequest(), timeout=10)
        slow.release.set()
        assert (late.result(5).text, running.result(5).text) == ("done", "done")
    assert stopped.wait(5)
    assert server.wait_for_termination(5) is False


async def test_an_aio_grpc_server_is_registered_until_it_stops(
    registering: Mesh, ads_server: AdsServer
) -> None:
    server = grpc_server.aio_server(mesh=registering)
    echo_pb2_grpc.add_EchoServicer_to_server(Slow(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await asyncio.to_thread(wait_until, lambda: registered(ads_server), 10)
    assert registered(ads_server)[-1]["ports"] == {"grpc": port}
    await server.stop(1)
    await server.wait_for_termination(5)
    assert deregistered(ads_server) == 1


def test_a_port_is_registered_once(registering: Mesh, ads_server: AdsServer) -> None:
    first, second = serving.Serving(registering, {}), serving.Serving(registering, {})
    first.listening(serving.Port(9080))
    second.listening(serving.Port(9080))
    assert (first.registered, second.registered) == ([9080], [])
    assert second.leave() == 0.0
    assert first.leave() > 0
    first.listening(serving.Port(9080))  # it has left for good
    assert serving.registered_ports() == []


def test_without_a_group_nothing_is_registered(mesh: Mesh) -> None:
    plain = serving.Serving(mesh, {})
    plain.listening(serving.Port(9080))
    assert plain.registered == []
    assert plain.leave() == 0.0
    assert repr(mesh).endswith("not started>")
