"""httpx and httpx2 over a real mesh: configuration that arrives over a real ADS stream."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from meshsdk.mesh import Mesh
from tests.support.ads import AdsServer
from tests.support.controlplane import ServedWorld
from tests.support.http_backend import Backend
from tests.support.resources import LDS, endpoints, route, service

NAME = "reviews.default.svc.cluster.local:9080"
URL = "http://reviews:9080"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend("one") as backend:
        yield backend


@pytest.fixture
def ads(backend: Backend) -> Iterator[AdsServer]:
    with AdsServer(unknown="allow_any") as server:
        server.set(service(NAME, [("127.0.0.1", backend.port)]))
        yield server


@pytest.fixture
def mesh(ads: AdsServer) -> Iterator[Mesh]:
    with Mesh(control_plane=ads.address) as mesh:
        yield mesh


@pytest.fixture(params=["httpx", "httpx2"])
def m(request: pytest.FixtureRequest) -> Any:
    return importlib.import_module(request.param)


def test_sync(m: Any, mesh: Mesh, ads: AdsServer, backend: Backend) -> None:
    with m.Client(transport=mesh.transport()) as client:
        assert client.get(f"{URL}/who").text == "one"
        assert client.get(f"http://{backend.target}/who").text == "one"
        ads.set(service(NAME, [("127.0.0.1", backend.port)], routes=[route(status=418)]))
        ads.wait(lambda: client.get(f"{URL}/who").status_code == 418, what="the new route")
    assert NAME in ads.subscribed(LDS)


@pytest.mark.parametrize("backend_name", ["asyncio", "trio"])
def test_async(m: Any, mesh: Mesh, backend: Backend, backend_name: str) -> None:
    async def run() -> None:
        async with m.AsyncClient(transport=mesh.async_transport()) as client:
            assert (await client.get(f"{URL}/who")).text == "one"
            assert (await client.get(f"http://{backend.target}/who")).text == "one"

    anyio.run(run, backend=backend_name)


def test_first_calls_at_once(m: Any, mesh: Mesh, backend: Backend) -> None:
    async def run() -> list[str]:
        async with m.AsyncClient(transport=mesh.async_transport()) as client:
            answers = await asyncio.gather(*(client.get(f"{URL}/who") for _ in range(20)))
            return [answer.text for answer in answers]

    assert asyncio.run(run()) == ["one"] * 20


def test_registry_only(m: Any, backend: Backend) -> None:
    with (
        AdsServer(unknown="block_all") as server,
        Mesh(control_plane=server.address) as mesh,
        m.Client(transport=mesh.transport()) as client,
    ):
        assert client.get(f"http://{backend.target}/who").status_code == 502
        with pytest.raises(m.ConnectError, match="not in the registry"):
            client.get(f"https://{backend.target}/who")
    assert backend.requests == []


def test_endpoint_that_leaves_is_hung_up_on(
    m: Any, mesh: Mesh, ads: AdsServer, backend: Backend
) -> None:
    with Backend("two") as other, m.Client(transport=mesh.transport()) as client:
        assert client.get(f"{URL}/who").text == "one"
        cluster = "outbound|9080||reviews.default.svc.cluster.local"
        ads.set(endpoints(cluster, [("127.0.0.1", other.port)]))
        backend.wait_for(lambda: backend.open == 0)  # without another request
        assert client.get(f"{URL}/who").text == "two"


def test_no_control_plane_is_a_connect_timeout(m: Any) -> None:
    with (
        Mesh(control_plane="127.0.0.1:1") as mesh,
        m.Client(transport=mesh.transport(), timeout=m.Timeout(5, connect=0.2)) as client,
        pytest.raises(m.ConnectTimeout, match=r"127\.0\.0\.1:1"),
    ):
        client.get(f"{URL}/who")


def test_mesh_that_is_off(m: Any, backend: Backend) -> None:
    with Mesh(enabled=False) as mesh, m.Client(transport=mesh.transport()) as client:
        assert client.get(f"http://{backend.target}/who").text == "one"


_WORLD = """
apiVersion: v1
kind: Service
metadata: {{name: reviews, namespace: default}}
spec:
  ports: [{{name: http, port: 9080}}]
---
apiVersion: v1
kind: Endpoints
metadata: {{name: reviews, namespace: default}}
subsets:
- addresses: [{{ip: 127.0.0.1}}]
  ports: [{{name: http, port: {port}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews, namespace: default}}
spec:
  hosts: [reviews]
  http:
  - match: [{{headers: {{end-user: {{exact: jason}}}}}}]
    directResponse: {{status: 418, body: {{string: for jason}}}}
  - match: [{{uri: {{prefix: /old/}}}}]
    rewrite: {{uri: /echo/}}
    headers: {{request: {{set: {{x-added: "yes"}}}}}}
    route: [{{destination: {{host: reviews}}}}]
  - route: [{{destination: {{host: reviews}}}}]
"""


def test_istio_yaml_to_response(m: Any, backend: Backend) -> None:
    """With the real control plane, under every name that a program may use."""
    with (
        ServedWorld(_WORLD.format(port=backend.port)) as served,
        Mesh(control_plane=f"127.0.0.1:{served.port}") as mesh,
        m.Client(transport=mesh.transport()) as client,
    ):
        for host in ("reviews", "reviews.default", "reviews.default.svc.cluster.local", "Reviews"):
            assert client.get(f"http://{host}:9080/who").text == "one"
        answer = client.get(f"{URL}/who", headers={"end-user": "jason"})
        assert (answer.status_code, answer.text) == (418, "for jason")
        seen = client.get(f"{URL}/old/x?y=1").json()
        assert seen["path"] == "/echo/x?y=1"
        assert ["x-added", "yes"] in seen["headers"]
        assert client.get(f"http://{backend.target}/who").text == "one"  # outside the registry


_FORKS = """
    import os, sys, time, asyncio
    import LIBRARY, meshsdk
    address, port = sys.argv[1:]
    mesh = meshsdk.Mesh(control_plane=address)
    sync = LIBRARY.Client(transport=mesh.transport())
    urls = ("http://reviews:9080/who", f"http://127.0.0.1:{port}/who")

    def call(turns):
        for _ in range(turns):
            for url in urls:
                assert sync.get(url).text == "one", url

    async def acall(turns):
        async with LIBRARY.AsyncClient(transport=mesh.async_transport()) as client:
            for _ in range(turns):
                for url in urls:
                    assert (await client.get(url)).text == "one", url

    call(5)
    children = []
    for _ in range(5):
        child = os.fork()
        if not child:
            try:
                call(50)
                asyncio.run(acall(50))
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    call(50)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 5
    call(5)
"""


def test_forked_children_start_anew(m: Any, ads: AdsServer, backend: Backend) -> None:
    code = textwrap.dedent(_FORKS).replace("LIBRARY", m.__name__)
    done = subprocess.run(
        [sys.executable, "-c", code, ads.address, str(backend.port)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # The parent has one connection to each; every child two of its own, sync and async.
    assert backend.accepted == 2 + 5 * 4
