"""Calls with the same key reach the same host, through every adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import grpc
import pytest

from meshsdk.model import Balancing, HashKind, HashPolicy
from tests.support.ads import wait_until
from tests.support.echo_grpc import EchoRequest, EchoServer
from tests.support.grpc_clients import NAME as GRPC_NAME
from tests.support.grpc_clients import Client, attempts
from tests.support.http_api import NAME, URL, Api, OpenMesh
from tests.support.http_backend import Backend
from tests.support.static_mesh import forward

BY_HEADER = (HashPolicy(HashKind.HEADER, "x-user"),)
USERS = [f"user-{number}" for number in range(20)]
SIDES = [("httpx", "sync"), ("httpx", "asyncio"), ("httpx2", "sync"), ("httpx2", "asyncio")]
hashing = pytest.mark.parametrize("balancing", [Balancing.RING_HASH, Balancing.MAGLEV])


@pytest.fixture
def backends() -> Iterator[list[Backend]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Backend(name)) for name in ("a", "b", "c")]


@pytest.fixture(params=SIDES, ids="-".join)
def api(request: pytest.FixtureRequest) -> Iterator[Api]:
    made = Api("mesh", *request.param, OpenMesh(), URL)
    yield made
    made.close()
    made.assert_released()


def listen(
    api: Api, backends: list[Backend], balancing: Balancing, policies: tuple[HashPolicy, ...]
) -> None:
    api.mesh.endpoints("reviews", *(one.target for one in backends), balancing=balancing)
    api.mesh.listen(NAME, forward("reviews", hash_policy=policies))


@hashing
def test_http(api: Api, backends: list[Backend], balancing: Balancing) -> None:
    listen(api, backends, balancing, BY_HEADER)
    with api.client() as client:

        def served(user: str) -> str:
            found: str = client.get(f"{URL}/who", headers={"x-user": user}).text
            return found

        first = [served(user) for user in USERS]
        assert [served(user) for user in USERS] == first
        assert len(set(first)) > 1


def test_a_cookie_that_the_mesh_makes(api: Api, backends: list[Backend]) -> None:
    policy = HashPolicy(HashKind.COOKIE, "user", ttl=60, path="/")
    listen(api, backends, Balancing.RING_HASH, (policy,))
    with api.client() as client:
        response = client.get(f"{URL}/who")
        assert response.headers["set-cookie"].startswith('user="')
        cookie = response.headers["set-cookie"].partition(";")[0]
        client.cookies.clear()
        again = [client.get(f"{URL}/who", headers={"cookie": cookie}) for _ in range(10)]
        assert {answer.text for answer in again} == {response.text}
        assert not [answer for answer in again if "set-cookie" in answer.headers]


@pytest.fixture
def servers() -> Iterator[list[EchoServer]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(EchoServer(name)) for name in ("a", "b", "c")]


@pytest.fixture(params=["sync", "aio"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    made = Client(request.param)
    yield made
    made.close()
    wait_until(lambda: attempts(made.mesh.snapshot) == 0, what="every attempt ended")


@hashing
def test_grpc(client: Client, servers: list[EchoServer], balancing: Balancing) -> None:
    client.mesh.endpoints("reviews", *(one.target for one in servers), balancing=balancing)
    client.mesh.listen(GRPC_NAME, forward("reviews", hash_policy=BY_HEADER))

    def served(user: str) -> str:
        message = EchoRequest(text="x")
        code, replies, _ = client.outcome("Unary", message, metadata=(("x-user", user),))
        assert code is grpc.StatusCode.OK
        found: str = replies[0].server
        return found

    first = [served(user) for user in USERS]
    assert [served(user) for user in USERS] == first
    assert len(set(first)) > 1
