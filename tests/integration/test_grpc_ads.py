"""gRPC calls through a mesh that takes its configuration from a control plane."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from meshsdk import errors
from meshsdk.mesh import Mesh
from tests.support.ads import AdsProcess, AdsServer, wait_until
from tests.support.echo_grpc import EchoRequest, EchoServer, EchoStub
from tests.support.programs import unmeasured
from tests.support.resources import LDS, listener, passthrough_cluster, route, service, unknown_host

NAME = "reviews.default.svc.cluster.local:9080"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def a() -> Iterator[EchoServer]:
    with EchoServer("a") as made:
        yield made


@pytest.fixture(scope="module")
def b() -> Iterator[EchoServer]:
    with EchoServer("b") as made:
        yield made


def at(*servers: EchoServer) -> list[tuple[str, int]]:
    return [("127.0.0.1", server.port) for server in servers]


def test_call(ads_server: AdsServer, mesh: Mesh, a: EchoServer) -> None:
    ads_server.set(service(NAME, at(a)))
    with mesh.channel("reviews:9080") as channel:
        reply = EchoStub(channel).Unary(EchoRequest(text="hi"), timeout=10)
        assert (reply.text, reply.server, reply.authority) == ("hi", "a", "reviews:9080")
        future = EchoStub(channel).Unary.future(EchoRequest(text="hi"), timeout=10)
        assert future.result().server == "a"


async def test_aio_call(ads_server: AdsServer, mesh: Mesh, a: EchoServer) -> None:
    ads_server.set(service(NAME, at(a)))
    async with mesh.aio_channel("reviews:9080") as channel:
        reply = await EchoStub(channel).Unary(EchoRequest(text="hi"), timeout=10)
        assert (reply.text, reply.server, reply.authority) == ("hi", "a", "reviews:9080")


async def test_waiting_for_configuration_does_not_hold_the_loop(
    ads_server: AdsServer, mesh: Mesh, a: EchoServer
) -> None:
    ads_server.hung = True
    ads_server.set(service(NAME, at(a)))
    async with mesh.aio_channel("reviews:9080") as channel:
        call = EchoStub(channel).Unary(EchoRequest(text="hi"), timeout=10)
        began = time.monotonic()
        await asyncio.sleep(0.05)
        assert time.monotonic() - began < 5
        assert not call.done()
        ads_server.hung = False
        assert (await call).server == "a"


def test_update_moves_calls_over(
    ads_server: AdsServer, mesh: Mesh, a: EchoServer, b: EchoServer
) -> None:
    ads_server.set(service(NAME, at(a), cluster_name="v1"))
    with mesh.channel("reviews:9080") as channel:
        stub = EchoStub(channel)
        assert stub.Unary(EchoRequest(), timeout=10).server == "a"
        stream = stub.Down(EchoRequest(count=50, delay=0.01), timeout=10)
        assert next(stream).server == "a"
        ads_server.set(service(NAME, at(b), cluster_name="v2"))
        wait_until(lambda: stub.Unary(EchoRequest(), timeout=10).server == "b")
        assert {reply.server for reply in stream} == {"a"}


def test_unknown_host_and_refused_host(ads_server: AdsServer, mesh: Mesh, a: EchoServer) -> None:
    ads_server.set(unknown_host(a.target), passthrough_cluster())
    ads_server.set(unknown_host("blocked.example:80", allow=False))
    with mesh.channel(a.target) as channel:
        assert EchoStub(channel).Unary(EchoRequest(), timeout=10).server == "a"
    with mesh.channel("blocked.example:80") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            EchoStub(channel).Unary(EchoRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_answer_by_header(ads_server: AdsServer, mesh: Mesh, a: EchoServer) -> None:
    routes = [route(headers={"end-user": "jason"}, status=503), route("v1")]
    ads_server.set(service(NAME, at(a), routes=routes, cluster_name="v1"))
    with mesh.channel("reviews:9080") as channel:
        stub = EchoStub(channel)
        assert stub.Unary(EchoRequest(), timeout=10).server == "a"
        with pytest.raises(grpc.RpcError) as caught:
            stub.Unary(EchoRequest(), metadata=(("end-user", "jason"),), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_no_control_plane() -> None:
    with Mesh(control_plane="127.0.0.1:1") as mesh, mesh.channel("reviews:9080") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            EchoStub(channel).Unary(EchoRequest(), timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "no configuration for reviews.default" in caught.value.details()
        assert isinstance(caught.value.__cause__, errors.NotReady)


def test_mesh_that_is_closed(ads_server: AdsServer, a: EchoServer) -> None:
    mesh = Mesh(bootstrap=ads_server.bootstrap)
    channel = mesh.channel("reviews:9080")
    mesh.close()
    with pytest.raises(ValueError, match="closed"):
        EchoStub(channel).Unary(EchoRequest(), timeout=5)
    channel.close()


def test_mesh_that_is_off(a: EchoServer) -> None:
    with Mesh(enabled=False) as mesh, mesh.channel(a.target) as channel:
        assert EchoStub(channel).Unary(EchoRequest(), timeout=5).server == "a"


def test_listener_removed_while_in_use(ads_server: AdsServer, mesh: Mesh, a: EchoServer) -> None:
    ads_server.set(service(NAME, at(a)))
    with mesh.channel("reviews:9080") as channel:
        stub = EchoStub(channel)
        stub.Unary(EchoRequest(), timeout=10)
        ads_server.remove(LDS, NAME)
        codes = []

        def refused() -> bool:
            try:
                stub.Unary(EchoRequest(), timeout=10)
            except grpc.RpcError as error:
                codes.append(error.code())
            return bool(codes)

        wait_until(refused)
        assert codes == [grpc.StatusCode.UNAVAILABLE]
        ads_server.set(listener(NAME, [route(f"outbound|9080||{NAME.rpartition(':')[0]}")]))
        wait_until(lambda: _works(stub))


def _works(stub: EchoStub) -> bool:
    try:
        stub.Unary(EchoRequest(), timeout=10)
    except grpc.RpcError:
        return False
    return True


# --- processes ---------------------------------------------------------------------------------


_FORKING = """
import asyncio, multiprocessing, sys, traceback
import meshsdk
from tests.support.echo_grpc import EchoRequest, EchoStub

mesh = meshsdk.Mesh(control_plane=sys.argv[1])
channel = mesh.channel("reviews:9080")
stub = EchoStub(channel)

def calls(count):
    for number in range(count):
        assert stub.Unary(EchoRequest(text=str(number)), timeout=10).text == str(number)

async def aio_calls(count):
    async with mesh.aio_channel("reviews:9080") as own:
        aio = EchoStub(own)
        for number in range(count):
            assert (await aio.Unary(EchoRequest(text=str(number)), timeout=10)).text == str(number)

def child(results):
    try:
        # The channel of the parent, used anew; and an aio channel of the child's own.
        assert not channel._pool._peers
        calls(100)
        asyncio.run(aio_calls(100))
        assert list(stub.Down(EchoRequest(count=3), timeout=10))
        results.put("ok")
    except BaseException:
        results.put(traceback.format_exc())

calls(100)
context = multiprocessing.get_context("fork")
results = context.SimpleQueue()
children = [context.Process(target=child, args=(results,)) for _ in range(20)]
for process in children: process.start()
answers = {results.get() for _ in children}
for process in children:
    process.join()
    assert process.exitcode == 0, process.exitcode
calls(100)
print("answers", *answers, flush=True)
"""

_EXITING = """
import asyncio, sys, time
import meshsdk
from tests.support.echo_grpc import EchoRequest, EchoStub

mesh = meshsdk.Mesh(control_plane=sys.argv[1])

async def main():
    stub = EchoStub(mesh.aio_channel("reviews:9080"))
    print((await stub.Unary(EchoRequest(text="aio"), timeout=10)).text)

if "aio" in sys.argv:
    asyncio.run(main())
else:
    stub = EchoStub(mesh.channel("reviews:9080"))
    print(stub.Unary(EchoRequest(text="sync"), timeout=10).text)
    stub.Unary.future(EchoRequest(delay=3))
print(time.time(), flush=True)
"""


@pytest.fixture
def control_plane(a: EchoServer, tmp_path: Path) -> Iterator[AdsProcess]:
    with AdsProcess(tmp_path, service(NAME, at(a))) as server:
        yield server


def test_children_call_on_after_a_fork(control_plane: AdsProcess, a: EchoServer) -> None:
    a.peers.clear()
    done = subprocess.run(
        [sys.executable, "-c", _FORKING, control_plane.address],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "answers ok\n"), done.stderr[-4000:]
    # The parent's connection, and two of each child: sync and aio.
    assert len(a.peers) == 1 + 20 * 2


@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_a_script_with_one_call_exits_at_once(control_plane: AdsProcess, kind: str) -> None:
    def seconds_to_exit() -> float:
        done = subprocess.run(
            [sys.executable, "-c", _EXITING, control_plane.address, kind],
            cwd=ROOT, env=unmeasured(), capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        text, last = done.stdout.split()
        assert text == kind
        assert "Traceback" not in done.stderr
        return time.time() - float(last)

    # On a busy machine one exit may be slow; being slow each time is a fault.
    assert any(seconds_to_exit() < 0.5 for _ in range(5))


def test_threads_that_make_the_first_call_together(
    ads_server: AdsServer, mesh: Mesh, a: EchoServer
) -> None:
    ads_server.set(service(NAME, at(a)))
    with mesh.channel("reviews:9080") as channel:
        stub = EchoStub(channel)
        replies: list[str] = []
        threads = [
            threading.Thread(
                target=lambda: replies.append(stub.Unary(EchoRequest(), timeout=10).server)
            )
            for _ in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert replies == ["a"] * 10
        assert len(channel._pool._peers) == 1  # type: ignore[attr-defined]
