"""Twenty children at once, a hundred calls by each of the four adapters, no socket in two hands."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.ads import AdsProcess
from tests.support.programs import ROOT
from tests.support.resources import service

CHILDREN, CALLS = 20, 100

_PROGRAM = f"""
import asyncio, multiprocessing, os, sys, traceback
import grpc, httpx
import meshsdk

mesh = meshsdk.Mesh(control_plane=sys.argv[1])
channel = mesh.channel("echo-grpc:9080")
client = httpx.Client(transport=mesh.transport())
call = channel.unary_unary("/Echo/Get")

def pid():
    return str(os.getpid())

def sync_calls(count):
    for _ in range(count):
        assert call(b"x", timeout=60, metadata=[("pid", pid())]) == b"x"
        assert client.get("http://echo-http:9080/", headers={{"pid": pid()}}).text == "ok"

async def async_calls(count):
    async with (mesh.aio_channel("echo-grpc:9080") as channel,
                httpx.AsyncClient(transport=mesh.async_transport(), timeout=60) as client):
        call = channel.unary_unary("/Echo/Get")
        for _ in range(count):
            assert await call(b"x", timeout=60, metadata=[("pid", pid())]) == b"x"
            answer = await client.get("http://echo-http:9080/", headers={{"pid": pid()}})
            assert answer.text == "ok"

def child(results):
    try:
        sync_calls({CALLS})
        asyncio.run(async_calls({CALLS}))
        results.put("ok")
    except BaseException:
        results.put(traceback.format_exc())

sync_calls(5)
context = multiprocessing.get_context("fork")
results = context.SimpleQueue()
children = [context.Process(target=child, args=(results,)) for _ in range({CHILDREN})]
for process in children:
    process.start()
sync_calls(50)
for answer in {{results.get() for _ in children}}:
    print(answer)
for process in children:
    process.join()
    assert process.exitcode == 0, process.exitcode
sync_calls(50)
asyncio.run(async_calls(5))
print("parent unharmed")
"""

Hands = dict[str, set[str]]
"""Address of the client's end of a connection → processes that sent on it."""


@pytest.fixture
def hands() -> Hands:
    return defaultdict(set)


@pytest.fixture
def http_port(hands: Hands) -> Iterator[int]:
    class Echo(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            hands[f"http {self.client_address[1]}"].add(self.headers["pid"])
            self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

        def log_message(self, *args: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        request_queue_size = 200

    server = Server(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def grpc_port(hands: Hands) -> Iterator[int]:
    def echo(request: bytes, context: grpc.ServicerContext) -> bytes:
        sender = dict(context.invocation_metadata())["pid"]
        hands[f"grpc {context.peer()}"].add(str(sender))
        return request

    handler = grpc.method_handlers_generic_handler(
        "Echo", {"Get": grpc.unary_unary_rpc_method_handler(echo)}
    )
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


@pytest.mark.timeout(300)
def test_children_call_by_every_adapter_and_share_no_socket(
    hands: Hands, http_port: int, grpc_port: int, tmp_path: Path
) -> None:
    served = [
        *service("echo-grpc.default.svc.cluster.local:9080", [("127.0.0.1", grpc_port)]),
        *service("echo-http.default.svc.cluster.local:9080", [("127.0.0.1", http_port)]),
    ]
    with AdsProcess(tmp_path, served) as control_plane:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, control_plane.address],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=280,
        )
    assert done.stdout.splitlines() == ["ok", "parent unharmed"], done.stdout + done.stderr
    assert len({sender for senders in hands.values() for sender in senders}) == CHILDREN + 1
    shared = {connection: senders for connection, senders in hands.items() if len(senders) > 1}
    assert not shared
