"""Copies of calls: they arrive, and whatever becomes of them, the call neither waits nor fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from meshsdk.matching import Fraction
from meshsdk.model import MirrorPolicy
from tests.support.ads import wait_until
from tests.support.echo_grpc import EchoRequest, EchoServer
from tests.support.grpc_clients import NAME as GRPC_NAME
from tests.support.grpc_clients import Client, attempts
from tests.support.http_api import NAME, URL, Api, OpenMesh
from tests.support.http_backend import Backend
from tests.support.static_mesh import forward

SIDES = [
    ("httpx", "sync"),
    ("httpx", "asyncio"),
    ("httpx", "trio"),
    ("httpx2", "sync"),
    ("httpx2", "asyncio"),
]
DEAD = "127.0.0.1:1"


@pytest.fixture
def one() -> Iterator[Backend]:
    with Backend("one") as backend:
        yield backend


@pytest.fixture
def shadow() -> Iterator[Backend]:
    with Backend("shadow") as backend:
        yield backend


@pytest.fixture(params=SIDES, ids="-".join)
def api(request: pytest.FixtureRequest) -> Iterator[Api]:
    library, side = request.param
    api = Api("mesh", library, side, OpenMesh(), URL)
    yield api
    api.close()
    api.assert_released()


def listen(api: Api, one: Backend, *targets: str, **policy: Any) -> None:
    api.mesh.endpoints("one", one.target)
    api.mesh.endpoints("shadow", *targets)
    mirrors = (MirrorPolicy("shadow", **policy),)
    api.mesh.listen(NAME, forward("one", mirrors=mirrors))


def test_a_copy_arrives_with_the_host_of_a_shadow(api: Api, one: Backend, shadow: Backend) -> None:
    listen(api, one, shadow.target)
    with api.client() as client:
        answer = client.post(f"{URL}/echo", content=b"body", headers={"x-a": "1"})
        wait_until(lambda: shadow.seen)
    assert answer.extensions["meshsdk"].endpoint == one.target
    (copy,) = shadow.seen
    assert (copy["method"], copy["path"], copy["body"]) == ("POST", "/echo", "body")
    headers = dict(copy["headers"])
    assert (headers["host"], headers["x-a"]) == ("reviews-shadow:9080", "1")


@pytest.mark.parametrize(
    ("policy", "host"),
    [({"suffix": False}, NAME), ({"host_rewrite": "other.example"}, "other.example")],
)
def test_host_of_the_copy(
    api: Api, one: Backend, shadow: Backend, policy: dict[str, Any], host: str
) -> None:
    listen(api, one, shadow.target, **policy)
    with api.client() as client:
        client.get(f"{URL}/echo")
        wait_until(lambda: shadow.seen)
    assert dict(shadow.seen[0]["headers"])["host"] == host


def test_a_body_that_is_made_while_it_is_sent(api: Api, one: Backend, shadow: Backend) -> None:
    listen(api, one, shadow.target)
    with api.client() as client:
        seen = client.post(f"{URL}/echo", content=api.parts([b"one ", b"two"])).json()
        wait_until(lambda: shadow.seen)
    assert (seen["body"], shadow.seen[0]["body"]) == ("one two", "one two")


def test_a_body_that_is_too_long_is_not_copied(api: Api, one: Backend, shadow: Backend) -> None:
    listen(api, one, shadow.target)
    with api.client() as client:
        chunks = [b"x" * 65536] * 17
        assert client.post(f"{URL}/length", content=api.parts(chunks)).text == str(17 * 65536)
        client.get(f"{URL}/who")
        wait_until(lambda: shadow.requests)
    assert shadow.requests == ["GET /who"]


@pytest.mark.parametrize("targets", [(DEAD,), ()])
def test_a_copy_that_fails_is_nobodys_business(
    api: Api, one: Backend, targets: tuple[str, ...]
) -> None:
    listen(api, one, *targets)
    with api.client() as client:
        assert [client.get(f"{URL}/who").text for _ in range(3)] == ["one"] * 3


def test_a_slow_copy_is_waited_for_by_nobody(api: Api, one: Backend, shadow: Backend) -> None:
    """And no more than a few are under way."""
    shadow.slow = True
    listen(api, one, shadow.target)
    with api.client() as client:
        for _ in range(70):
            assert client.get(f"{URL}/who").text == "one"
        wait_until(lambda: shadow.requests)
        assert len(shadow.requests) <= 64
    assert one.requests == ["GET /who"] * 70


def test_a_share_of_the_calls(api: Api, one: Backend, shadow: Backend) -> None:
    listen(api, one, shadow.target, fraction=Fraction(0))
    with api.client() as client:
        client.get(f"{URL}/who")
    listen(api, one, shadow.target)
    with api.client() as client:
        client.get(f"{URL}/echo")
        wait_until(lambda: shadow.requests)
    assert shadow.requests == ["GET /echo"]


# --- gRPC ------------------------------------------------------------------------------------


@pytest.fixture
def a() -> Iterator[EchoServer]:
    with EchoServer("a") as made:
        yield made


@pytest.fixture
def copies() -> Iterator[EchoServer]:
    with EchoServer("copies") as made:
        yield made


@pytest.fixture(params=["sync", "aio"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    made = Client(request.param)
    yield made
    made.close()
    wait_until(lambda: attempts(made.mesh.snapshot) == 0, what="every attempt ended")


def grpc_listen(client: Client, a: EchoServer, *targets: str, **policy: Any) -> None:
    client.mesh.endpoints("a", a.target)
    client.mesh.endpoints("copies", *targets)
    mirrors = (MirrorPolicy("copies", **policy),)
    client.mesh.listen(GRPC_NAME, forward("a", mirrors=mirrors))


def arguments(method: str) -> list[Any]:
    message = EchoRequest(text="x", count=2)
    return [iter([message, message])] if method in ("Up", "Both") else [message]


@pytest.mark.parametrize("method", ["Unary", "Down", "Up", "Both"])
def test_a_copy_of_a_grpc_call_arrives(
    client: Client, a: EchoServer, copies: EchoServer, method: str
) -> None:
    grpc_listen(client, a, copies.target)
    for count in (1, 2):
        code, replies, _ = client.outcome(method, *arguments(method), metadata=(("x-a", "1"),))
        assert (code, {reply.server for reply in replies}) == (grpc.StatusCode.OK, {"a"})
        wait_until(lambda count=count: copies.calls == count)
    assert copies.authorities == {"reviews-shadow:9080"}
    texts = ["x", "x"] if method in ("Up", "Both") else ["x"]
    wait_until(lambda: copies.received == [texts, texts])


@pytest.mark.parametrize("targets", [(DEAD,), ()])
def test_a_copy_that_fails_is_nobodys_business_of_grpc(
    client: Client, a: EchoServer, targets: tuple[str, ...]
) -> None:
    grpc_listen(client, a, *targets)
    assert [client.unary().server for _ in range(3)] == ["a"] * 3


def test_requests_that_are_written_one_by_one(
    client: Client, a: EchoServer, copies: EchoServer
) -> None:
    if client.kind == "sync":
        return
    grpc_listen(client, a, copies.target)

    async def call() -> Any:
        call = client.stub.Up()
        for text in ("one", "two"):
            await call.write(EchoRequest(text=text))
        await call.done_writing()
        return await call

    assert client.run(call()).text == "one,two"
    wait_until(lambda: copies.calls == 1)
    wait_until(lambda: copies.received == [["one", "two"]])


def test_a_slow_copy_of_grpc_is_waited_for_by_nobody(client: Client, a: EchoServer) -> None:
    release = threading.Event()
    with EchoServer("slow", before=lambda: release.wait(30)) as slow:
        grpc_listen(client, a, slow.target)
        for _ in range(70):
            assert client.unary().server == "a"
        wait_until(lambda: slow.calls)
        assert slow.calls <= 64
        release.set()
