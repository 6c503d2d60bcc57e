"""Connections to TCP services: over sockets and over asyncio's streams."""

from __future__ import annotations

import asyncio
import gc
import socket
import socketserver
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest
import trustme

from meshsdk.errors import Blocked, NoHealthyUpstream
from meshsdk.model import DirectResponseAction, Pem, Route, UpstreamTls
from meshsdk.tcp import create_connection, open_connection
from tests.support.ads import wait_until
from tests.support.grpc_clients import attempts
from tests.support.static_mesh import ANY, PASSTHROUGH, StaticMesh, forward

NAME = "db:5432"
DEAD = "127.0.0.1:1"


class Server:
    """Says its name, then sends back what it gets."""

    def __init__(self, name: str, context: ssl.SSLContext | None = None) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                connection = self.request
                try:
                    if context is not None:
                        connection = context.wrap_socket(connection, server_side=True)
                    connection.sendall(name.encode())
                    while data := connection.recv(1000):
                        connection.sendall(data)
                except OSError:
                    pass

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.target = f"127.0.0.1:{self._server.server_address[1]}"
        self.port = self._server.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Dialed:
    """One connection, used the same way by the tests: blocking."""

    def __init__(self, read: Callable[[], bytes], write: Any, close: Any, it: Any) -> None:
        self.read, self.write, self.close, self.it = read, write, close, it


class Ways:
    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.mesh = StaticMesh()
        self.loop = asyncio.new_event_loop()

    def dial(self, host: str = "db", port: int = 5432, **options: Any) -> Dialed:
        mesh: Any = self.mesh
        if self.kind == "socket":
            context = options.pop("ssl", None)
            made: Any = create_connection(mesh, (host, port), 5)
            if context is not None:
                made = context.wrap_socket(made, server_hostname=host)
            return Dialed(lambda: made.recv(100), made.sendall, made.close, made)
        run = self.loop.run_until_complete
        reader, writer = run(open_connection(mesh, host, port, **options))

        async def close() -> None:
            writer.close()
            await writer.wait_closed()

        return Dialed(
            lambda: run(reader.read(100)), writer.write, lambda: run(close()), (reader, writer)
        )

    @property
    def active(self) -> int:
        return attempts(self.mesh.snapshot)


@pytest.fixture(params=["socket", "streams"])
def ways(request: pytest.FixtureRequest) -> Iterator[Ways]:
    made = Ways(request.param)
    yield made
    assert made.active == 0
    made.loop.close()


@pytest.fixture
def one() -> Iterator[Server]:
    with Server("one") as server:
        yield server


@pytest.fixture
def two() -> Iterator[Server]:
    with Server("two") as server:
        yield server


def names_of(ways: Ways, count: int) -> Counter[bytes]:
    found: Counter[bytes] = Counter()
    for _ in range(count):
        connection = ways.dial()
        found[connection.read()] += 1
        connection.close()
    return found


def test_bytes_go_there_and_back_and_the_connection_counts(ways: Ways, one: Server) -> None:
    ways.mesh.endpoints("db", one.target)
    ways.mesh.listen(NAME, forward("db"))
    connection = ways.dial()
    assert connection.read() == b"one"
    connection.write(b"ping")
    assert connection.read() == b"ping"
    assert ways.active == 1
    connection.close()
    assert ways.active == 0


def test_balancing_and_weights(ways: Ways, one: Server, two: Server) -> None:
    ways.mesh.endpoints("both", one.target, two.target)
    ways.mesh.listen(NAME, forward("both"))
    assert names_of(ways, 6) == {b"one": 3, b"two": 3}
    ways.mesh.endpoints("one", one.target)
    ways.mesh.endpoints("two", two.target)
    ways.mesh.listen(NAME, forward(("one", 100), ("two", 0)))
    assert names_of(ways, 5) == {b"one": 5}


def test_another_endpoint_where_one_cannot_be_reached(ways: Ways, one: Server) -> None:
    ways.mesh.endpoints("db", DEAD, one.target)
    ways.mesh.listen(NAME, forward("db"))
    assert names_of(ways, 4) == {b"one": 4}


def test_no_endpoint_can_be_reached(ways: Ways) -> None:
    ways.mesh.endpoints("db", DEAD, "127.0.0.1:2")
    ways.mesh.listen(NAME, forward("db"))
    with pytest.raises(ConnectionError, match=r"cluster db: .*127\.0\.0\.1:[12].*127\.0\.0\.1:"):
        ways.dial()


def test_no_endpoint(ways: Ways) -> None:
    ways.mesh.endpoints("db")
    ways.mesh.listen(NAME, forward("db"))
    with pytest.raises(ConnectionError) as caught:
        ways.dial()
    assert isinstance(caught.value.__cause__, NoHealthyUpstream)


def test_a_host_outside_the_registry(ways: Ways, one: Server) -> None:
    ways.mesh.listen(f"127.0.0.1:{one.port}", forward(PASSTHROUGH.name))
    connection = ways.dial("127.0.0.1", one.port)
    assert connection.read() == b"one"
    connection.close()
    ways.mesh.listen(f"127.0.0.1:{one.port}", Route("block_all", ANY, DirectResponseAction(502)))
    with pytest.raises(ConnectionRefusedError, match="registered") as caught:
        ways.dial("127.0.0.1", one.port)
    assert isinstance(caught.value.__cause__, Blocked)


def test_a_connection_that_is_dropped(ways: Ways, one: Server) -> None:
    ways.mesh.endpoints("db", one.target)
    ways.mesh.listen(NAME, forward("db"))
    connection = ways.dial()
    assert connection.read() == b"one"
    if ways.kind == "streams":
        connection.it[1].transport.abort()
        ways.loop.run_until_complete(asyncio.sleep(0))
    del connection
    gc.collect()
    wait_until(lambda: ways.active == 0)


def test_tls_of_the_mesh_and_of_the_caller(ways: Ways) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("db.example").configure_cert(context)
    roots = Pem(content=authority.cert_pem.bytes())
    with Server("secure", context) as server:
        for name in ("db.example", "other.example"):
            tls = UpstreamTls(name, roots=roots, verify_sni=True)
            ways.mesh.endpoints("db", server.target, tls=tls)
            ways.mesh.listen(NAME, forward("db"))
            if name == "other.example":
                with pytest.raises(ConnectionError, match=r"not for other\.example"):
                    ways.dial()
                break
            connection = ways.dial()
            assert connection.read() == b"secure"
            assert ways.active == 1
            connection.close()
        ways.mesh.endpoints("plain", server.target)
        ways.mesh.listen("db.example:5432", forward("plain"))
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        connection = ways.dial("db.example", ssl=trusting)
        assert connection.read() == b"secure"
        connection.close()


def test_addresses(ways: Ways) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        ways.mesh.endpoints("six", f"127.0.0.1:{port}")
        ways.mesh.listen("fd00::1:80", forward("six"))
        ways.dial("fd00::1", 80).close()
