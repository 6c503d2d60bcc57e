"""Copies of calls: they arrive, and whatever becomes of them, the call neither waits nor fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from meshsdk.matching import Fraction
from meshsdk.model import MirrorPolicy
from tests.support.ads import wait_until
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
