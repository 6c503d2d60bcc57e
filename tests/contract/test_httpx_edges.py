"""Cancellation, forks, mocks, instrumentation, and programs that do not know of the mesh."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
import respx

import meshsdk.httpx
from meshsdk._httpx.pool import AsyncPool, Pool
from meshsdk._httpx.watch import watch_of
from tests.support.http_api import NAME, URL, OpenMesh, mesh_of
from tests.support.http_backend import Backend
from tests.support.static_mesh import StaticMesh, forward

LIBRARIES = ("httpx", "httpx2")


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend("one") as backend:
        yield backend


@pytest.fixture
def mesh(backend: Backend) -> OpenMesh:
    return mesh_of(backend)


@pytest.fixture(params=LIBRARIES)
def m(request: pytest.FixtureRequest) -> Any:
    return importlib.import_module(request.param)


@pytest.fixture
def attached(mesh: OpenMesh) -> Iterator[OpenMesh]:
    meshsdk.httpx.attach(mesh)  # type: ignore[arg-type]
    yield mesh
    meshsdk.httpx.detach()


def active(mesh: StaticMesh) -> int:
    view = mesh.snapshot.view(NAME)
    assert view is not None
    return sum(state.active for c in view.clusters.values() for state in c.endpoints)


def async_client(m: Any, mesh: Any, **options: Any) -> Any:
    limits = options.pop("limits", m.Limits(max_connections=2))
    return m.AsyncClient(transport=meshsdk.httpx.async_transport(mesh, limits=limits), **options)


# --- cancellation ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/slow", "/stall", "/big", "/deaf"])
@pytest.mark.parametrize("kind", ["asyncio", "anyio", "trio"])
def test_cancelled_anywhere(m: Any, mesh: OpenMesh, backend: Backend, kind: str, path: str) -> None:
    """After any number of cancelled requests the client works, and nothing is counted as busy."""

    async def run() -> None:
        async with async_client(m, mesh) as client:
            content = b"x" * 8_000_000 if path == "/deaf" else b""
            for turn in range(12):
                await cancelled_after(turn, client, content)
            assert active(mesh) == 0
            backend.release.set()
            assert (await client.get(f"{URL}/who")).text == "one"
            await asleep_until(lambda: backend.open <= 1)

    async def cancelled_after(turn: int, client: Any, content: bytes) -> None:
        """Cancelled at another await each time: first by turns of the loop, then by time."""

        async def call() -> None:
            with contextlib.suppress(m.TransportError):
                await client.request("POST", f"{URL}{path}", content=content)

        if kind == "asyncio":
            task = asyncio.create_task(call())
            await wait(turn)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(call)
                await wait(turn)
                group.cancel_scope.cancel()

    async def wait(turn: int) -> None:
        if turn < 9:
            for _ in range(turn):
                await anyio.lowlevel.checkpoint()
        else:
            await anyio.sleep(0.01)

    async def asleep_until(condition: Any) -> None:
        with anyio.fail_after(5):
            while not condition():  # noqa: ASYNC110 - another thread makes it true
                await anyio.sleep(0.005)

    anyio.run(run, backend="trio" if kind == "trio" else "asyncio")


async def test_cancelled_in_the_queue(m: Any, mesh: OpenMesh, backend: Backend) -> None:
    limits = m.Limits(max_connections=1)
    async with async_client(m, mesh, limits=limits) as client:
        async with client.stream("GET", f"{URL}/chunks") as response:
            waiting = [asyncio.create_task(client.get(f"{URL}/who")) for _ in range(4)]
            await asyncio.sleep(0.01)
            for task in waiting[:3]:
                task.cancel()
            await response.aread()
        assert (await waiting[3]).text == "one"
        # Cancelled in the very moment in which a connection is handed over.
        async with client.stream("GET", f"{URL}/chunks") as response:
            waiting = [asyncio.create_task(client.get(f"{URL}/who")) for _ in range(2)]
            await asyncio.sleep(0.01)
            await response.aread()
            waiting[0].cancel()
        assert (await waiting[1]).text == "one"
        assert active(mesh) == 0


async def test_break_out_of_a_stream(m: Any, mesh: OpenMesh, backend: Backend) -> None:
    async with async_client(m, mesh) as client:
        for _ in range(3):
            async with client.stream("GET", f"{URL}/big") as response:
                async for _ in response.aiter_raw():
                    break
        assert active(mesh) == 0
        assert (await client.get(f"{URL}/who")).text == "one"


async def test_cancelled_while_reading(m: Any, mesh: OpenMesh, backend: Backend) -> None:
    async with async_client(m, mesh) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), client.stream("GET", f"{URL}/stall") as response:
                async for _ in response.aiter_raw():
                    pass
        assert active(mesh) == 0
        backend.release.set()


def test_client_used_by_one_loop_after_another(m: Any, mesh: OpenMesh, backend: Backend) -> None:
    client = async_client(m, mesh)

    async def call() -> str:
        return str((await client.get(f"{URL}/who")).text)

    assert [asyncio.run(call()) for _ in range(3)] == ["one"] * 3
    gc.collect()


async def test_sync_client_within_a_loop(m: Any, mesh: OpenMesh, backend: Backend) -> None:
    with m.Client(transport=meshsdk.httpx.transport(mesh)) as client:  # type: ignore[arg-type]
        for _ in range(3):
            assert client.get(f"{URL}/who").text == "one"
    assert backend.accepted == 1


# --- forks -----------------------------------------------------------------------------------


def test_no_socket_is_shared_with_a_child(m: Any, mesh: OpenMesh, backend: Backend) -> None:
    """Mesh and passthrough connections alike; the parent goes on with its own."""
    with m.Client(transport=meshsdk.httpx.transport(mesh)) as client:  # type: ignore[arg-type]
        urls = (f"{URL}/who", f"http://{backend.target}/who")
        for url in urls:
            client.get(url)
        assert backend.accepted == 2
        children = []
        for _ in range(3):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    watch_of(mesh).forked()  # type: ignore[arg-type]
                    if all(client.get(url).text == "one" for url in urls for _ in range(10)):
                        status = 0
                finally:
                    os._exit(status)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        assert backend.accepted == 2 + 3 * 2
        for url in urls:
            assert client.get(url).text == "one"
        assert backend.accepted == 8


# --- mocks and instrumentation ---------------------------------------------------------------


def test_respx_mocks_what_goes_through_the_mesh(mesh: OpenMesh, backend: Backend) -> None:
    with meshsdk.httpx.Client(mesh=mesh) as client:  # type: ignore[arg-type]
        assert client.get(f"{URL}/who").text == "one"
        with respx.mock:
            route = respx.get(f"{URL}/who").mock(return_value=httpx.Response(418, text="mocked"))
            assert client.get(f"{URL}/who").text == "mocked"
            assert route.called
            with pytest.raises(respx.models.AllMockedAssertionError):
                client.get("http://elsewhere/")
        assert client.get(f"{URL}/who").text == "one"


@respx.mock
async def test_respx_async_and_before_the_first_use(backend: Backend) -> None:
    respx.get("http://unknown.example/").mock(side_effect=httpx.ConnectError)
    respx.get(f"{URL}/who").respond(json={"a": 1})
    # This mesh would never be ready: nobody asks it.
    async with meshsdk.httpx.AsyncClient(mesh=StaticMesh()) as client:  # type: ignore[arg-type]
        assert (await client.get(f"{URL}/who")).json() == {"a": 1}
        with pytest.raises(httpx.ConnectError):
            await client.get("http://unknown.example/")


def test_respx_attached(attached: OpenMesh, backend: Backend) -> None:
    with respx.mock:
        respx.get(f"{URL}/who").respond(text="mocked")
        assert httpx.get(f"{URL}/who").text == "mocked"
    assert httpx.get(f"{URL}/who").text == "one"


def test_respx_that_patches_httpx(mesh: OpenMesh) -> None:
    with respx.mock(using="httpx") as router, meshsdk.httpx.Client(mesh=mesh) as client:  # type: ignore[arg-type]
        router.get(f"{URL}/who").respond(text="mocked")
        assert client.get(f"{URL}/who").text == "mocked"


def test_patched_transport_method(m: Any, mesh: OpenMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pytest-httpx mocks, and as OpenTelemetry instruments."""
    seen = []
    original = m.HTTPTransport.handle_request

    def handle_request(self: Any, request: Any) -> Any:
        seen.append(str(request.url))
        return original(self, request)

    monkeypatch.setattr(m.HTTPTransport, "handle_request", handle_request)
    with m.Client(transport=meshsdk.httpx.transport(mesh)) as client:  # type: ignore[arg-type]
        assert client.get(f"{URL}/who").text == "one"
    assert seen == [f"{URL}/who"]  # once, with the address that the program wrote


# --- attached to an unchanged program --------------------------------------------------------


def test_attach_covers_every_way_to_call(m: Any, attached: OpenMesh, backend: Backend) -> None:
    class Own(m.HTTPTransport):  # type: ignore[misc,name-defined]
        pass

    assert m.get(f"{URL}/who").text == "one"
    assert m.Client(transport=m.HTTPTransport(retries=1)).get(f"{URL}/who").text == "one"
    assert m.Client(transport=Own()).get(f"{URL}/who").text == "one"
    assert m.Client(mounts={"all://": m.HTTPTransport()}).get(f"{URL}/who").text == "one"
    assert m.get(f"http://{backend.target}/who").text == "one"
    assert asyncio.run(_get(m.AsyncClient())) == "one"
    gc.collect()


async def _get(client: Any) -> str:
    async with client:
        return str((await client.get(f"{URL}/who")).text)


def test_attach_covers_clients_that_exist(m: Any, mesh: OpenMesh, backend: Backend) -> None:
    with m.Client() as client:
        client.get(f"http://{backend.target}/who")
        meshsdk.httpx.attach(mesh)  # type: ignore[arg-type]
        try:
            assert client.get(f"{URL}/who").text == "one"
            assert isinstance(client._transport._pool, Pool)
        finally:
            meshsdk.httpx.detach()
        with pytest.raises(m.ConnectError):
            client.get("http://reviews.invalid/")
        assert client.get(f"http://{backend.target}/who").text == "one"


def test_attach_respects_what_is_no_http_transport(
    m: Any, attached: OpenMesh, backend: Backend
) -> None:
    mock = m.MockTransport(lambda request: m.Response(418))
    assert m.Client(transport=mock).get(f"{URL}/who").status_code == 418


def test_attach_leaves_a_proxy_alone_and_says_so_once(
    attached: OpenMesh,
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("meshsdk._httpx.attach._said_proxied", False)
    with httpx.Client(proxy=f"http://{backend.target}") as client:
        for _ in range(2):
            assert client.get(f"{URL}/echo?k=1").json()["path"] == f"{URL}/echo?k=1"
    assert [record.message.partition(" goes")[0] for record in caplog.records] == [f"{URL}/echo"]


def test_the_mesh_is_asked_before_the_proxy_of_a_mesh_client(
    mesh: OpenMesh, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{backend.target}")
    monkeypatch.setenv("NO_PROXY", "")
    with meshsdk.httpx.Client(mesh=mesh) as client:  # type: ignore[arg-type]
        assert client.get(f"{URL}/echo").json()["path"] == "/echo"
        assert client.get("http://elsewhere.invalid/echo").json()["path"].startswith("http://")


def test_attach_twice_and_detach(m: Any, backend: Backend) -> None:
    with Backend("two") as other, m.Client() as client:
        before = m.HTTPTransport.handle_request, m.AsyncHTTPTransport.handle_async_request
        for served, name in ((backend, "one"), (other, "two")):
            meshsdk.httpx.attach(mesh_of(served))  # type: ignore[arg-type]
            assert client.get(f"{URL}/who").text == name
        assert meshsdk.httpx.attached() == list(LIBRARIES)
        meshsdk.httpx.detach()
        assert meshsdk.httpx.attached() == []
        after = m.HTTPTransport.handle_request, m.AsyncHTTPTransport.handle_async_request
        assert before == after


def test_detach_below_somebody_elses_patch(m: Any, attached: OpenMesh) -> None:
    ours = m.HTTPTransport.handle_request

    def theirs(self: Any, request: Any) -> Any:
        return ours(self, request)

    m.HTTPTransport.handle_request = theirs
    try:
        meshsdk.httpx.detach()
        assert m.HTTPTransport.handle_request is theirs
        with pytest.raises(m.ConnectError):
            m.get("http://reviews.invalid/")
        meshsdk.httpx.attach(attached)  # type: ignore[arg-type]
        assert m.get(f"{URL}/who").text == "one"
    finally:
        m.HTTPTransport.handle_request = ours
        meshsdk.httpx.detach()


PROGRAM = """
    import sys
    import meshsdk.httpx
    assert not {"httpx", "httpx2"} & set(sys.modules)
    from tests.support.static_mesh import StaticMesh, forward
    mesh = StaticMesh()
    mesh.endpoints("reviews", sys.argv[1])
    mesh.listen("reviews:9080", forward("reviews"))
    meshsdk.httpx.attach(mesh)
    assert not {"httpx", "httpx2"} & set(sys.modules)
    import LIBRARY
    assert len({"httpx", "httpx2"} & set(sys.modules)) == 1
    assert LIBRARY.get("http://reviews:9080/who").text == "one"
    import meshsdk.LIBRARY
    with meshsdk.LIBRARY.Client(mesh=mesh) as client:
        assert client.get("http://reviews:9080/who").text == "one"
    with LIBRARY.Client(transport=meshsdk.httpx.transport(mesh)) as client:
        assert client.get("http://reviews:9080/who").text == "one"
    assert len({"httpx", "httpx2"} & set(sys.modules)) == 1
"""


@pytest.mark.parametrize("library", LIBRARIES)
def test_attach_before_the_import_and_with_one_library_only(
    backend: Backend, library: str, tmp_path: Path
) -> None:
    # The other library cannot be imported, as if it were not installed.
    other = "httpx2" if library == "httpx" else "httpx"
    block = f"import sys\nsys.modules[{other!r}] = None\ndel sys.modules[{other!r}]\n"
    blocker = textwrap.dedent(
        f"""
        import sys
        class Absent:
            def find_spec(self, name, path, target=None):
                if name == {other!r}:
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Absent())
        """
    )
    code = block + blocker + textwrap.dedent(PROGRAM).replace("LIBRARY", library)
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, backend.target], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# --- one pool, many threads ------------------------------------------------------------------


def test_threads_under_changing_configuration(m: Any, backend: Backend) -> None:
    """Endpoints come and go while 8 threads call: every call is answered."""
    with Backend("two") as other:
        mesh = mesh_of(backend, other)
        failures: list[str] = []
        stop = threading.Event()
        client = m.Client(transport=meshsdk.httpx.transport(mesh))  # type: ignore[arg-type]

        def work() -> None:
            while not stop.is_set():
                response = client.get(f"{URL}/who")
                if response.text not in ("one", "two"):
                    failures.append(repr(response))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for turn in range(40):
            mesh.endpoints("reviews", (backend, other)[turn % 2].target)
            mesh.listen(NAME, forward("reviews"))
            stop.wait(0.01)
        stop.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert active(mesh) == 0
        client.close()
        backend.wait_for(lambda: backend.open + other.open == 0)


async def test_async_pool_keeps_to_its_loop(m: Any, mesh: OpenMesh, backend: Backend) -> None:
    """A change in another thread dooms idle connections; the loop closes them at its next call."""
    with Backend("two") as other:
        async with async_client(m, mesh) as client:
            await client.get(f"{URL}/who")
            mesh.endpoints("reviews", other.target)
            change = threading.Thread(target=mesh.listen, args=(NAME, forward("reviews")))
            change.start()
            change.join()
            assert backend.open == 1
            assert (await client.get(f"{URL}/who")).text == "two"
            backend.wait_for(lambda: backend.open == 0)
            assert isinstance(client._transport._inner[m.__name__]._pool, AsyncPool)


async def test_many_tasks(m: Any, mesh: OpenMesh, backend: Backend) -> None:
    async def generate(number: int) -> AsyncIterator[bytes]:
        for part in range(3):
            yield b"%d.%d " % (number, part)

    limits = m.Limits(max_connections=5)
    async with async_client(m, mesh, limits=limits) as client:
        answers = await asyncio.gather(
            *(client.post(f"{URL}/echo", content=generate(number)) for number in range(60))
        )
    want = ["".join(f"{number}.{part} " for part in range(3)) for number in range(60)]
    assert [answer.json()["body"] for answer in answers] == want
    assert backend.accepted <= 5
