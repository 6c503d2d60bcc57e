"""No mesh: nothing configured, nothing there, or switched off. Nobody's tests may hang."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

from meshsdk.errors import NotReady
from meshsdk.mesh import Mesh, default_mesh
from meshsdk.xds import bootstrap, client
from tests.support.ads import AdsServer, free_port, wait_until
from tests.support.resources import LDS, service

pytest_plugins = ["pytester"]

NAME = "reviews.default.svc.cluster.local:9080"


@pytest.fixture
def default_port(monkeypatch: pytest.MonkeyPatch) -> int:
    """Another port in place of 15010, and a process that has not warned yet."""
    port = free_port()
    monkeypatch.setattr(bootstrap, "DEFAULT_SERVER", f"127.0.0.1:{port}")
    monkeypatch.setattr(client, "_warned_of_bypass", False)
    return port


def bypassed(mesh: Mesh, within: float) -> bool:
    started = time.monotonic()
    view = mesh.wait_for(NAME, 30)
    assert time.monotonic() - started < within
    return view.passthrough


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("meshsdk")]


def test_nothing_listens_and_calls_go_out_at_once_with_one_warning(
    default_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        with Mesh() as mesh:
            assert bypassed(mesh, within=1)
            assert bypassed(mesh, within=0.1)
            mesh.wait_ready(1)
            assert mesh.snapshot.bypass
    (line,) = warnings(caplog)
    assert f"127.0.0.1:{default_port}" in line
    assert "MESHSDK_CONTROL_PLANE=host:port" in line
    assert "MESHSDK_ENABLED=false" in line


async def test_coroutines_are_let_through_too(default_port: int) -> None:
    async with Mesh() as mesh:
        view = await mesh.wait_for_async(NAME, 1)
        assert view.passthrough


@contextlib.contextmanager
def silent_peer(port: int) -> Iterator[None]:
    """Accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", port)):
        yield


@contextlib.contextmanager
def http1_peer(port: int) -> Iterator[None]:
    """Answers everything with an HTTP/1.1 error, as a development server would."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", port)) as listening:
        listening.settimeout(0.05)

        def serve() -> None:
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    peer, _ = listening.accept()
                    with peer:
                        peer.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@contextlib.contextmanager
def grpc_peer(port: int) -> Iterator[None]:
    """A gRPC server that is no control plane."""
    server = grpc.server(futures.ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait(5)


@pytest.mark.parametrize("peer", [silent_peer, http1_peer, grpc_peer])
def test_a_peer_that_is_no_control_plane_hangs_nobody(
    default_port: int, caplog: pytest.LogCaptureFixture, peer: object
) -> None:
    with peer(default_port), Mesh() as mesh:  # type: ignore[operator]
        assert bypassed(mesh, within=2)
    assert len(warnings(caplog)) == 1


def test_a_hung_control_plane_hangs_nobody(default_port: int) -> None:
    """It opens the stream and never answers on it."""
    with AdsServer(port=default_port) as server:
        server.hung = True
        with Mesh() as mesh:
            assert bypassed(mesh, within=2)
            server.hung = False
            server.set(service(NAME, [("127.0.0.1", 1)]))
            wait_until(lambda: not mesh.snapshot.bypass)
            assert not mesh.wait_for(NAME, 5).passthrough


def test_a_mesh_at_the_default_address_is_used(default_port: int) -> None:
    with AdsServer(port=default_port) as server:
        server.set(service(NAME, [("127.0.0.1", 1)]))
        with Mesh() as mesh:
            view = mesh.wait_for(NAME, 5)
            assert not view.passthrough
            assert view.clusters


def test_a_mesh_that_appears_later_is_used(
    default_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_PROBE_AGAIN", (0.05, 0.2))
    with Mesh() as mesh:
        assert bypassed(mesh, within=1)
        with AdsServer(port=default_port) as server:
            server.set(service(NAME, [("127.0.0.1", 1)]))
            wait_until(lambda: mesh.snapshot.view(NAME) and not mesh.snapshot.bypass)
            view = mesh.snapshot.view(NAME)
            assert view is not None
            assert view.clusters
        # Once there was a mesh, its last configuration counts.
        wait_until(lambda: "not connected" in repr(mesh))
        assert not mesh.snapshot.bypass


def test_required_makes_it_an_error_after_a_moment(
    default_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MESHSDK_REQUIRED", "true")
    with Mesh() as mesh:
        started = time.monotonic()
        with pytest.raises(NotReady, match=f"127.0.0.1:{default_port}.*refused"):
            mesh.wait_for(NAME, 30)
        with pytest.raises(NotReady):
            mesh.wait_for(NAME, 30)
        assert time.monotonic() - started < 10
    assert not warnings(caplog)


def test_required_and_started_together(default_port: int) -> None:
    with Mesh(required=True) as mesh:
        with pytest.raises(NotReady):
            mesh.wait_for(NAME, 0.01)
        with AdsServer(port=default_port) as server:
            server.set(service(NAME, [("127.0.0.1", 1)]))
            server.wait(lambda: NAME in server.subscribed(LDS))
            wait_until(lambda: mesh.snapshot.view(NAME))
            assert not mesh.wait_for(NAME, 5).passthrough


def test_switched_off_there_is_no_thread_and_no_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ads_server: AdsServer
) -> None:
    monkeypatch.setenv("MESHSDK_ENABLED", "false")
    before = threading.active_count()
    with Mesh(bootstrap=ads_server.bootstrap, auto_register_group="g") as mesh:
        assert mesh.snapshot.bypass
        assert mesh.wait_for(NAME, 0).passthrough
        mesh.wait_ready(0)
        mesh.register(port=80).close()
        assert threading.active_count() == before
        assert "off" in repr(mesh)
    assert ads_server.streams_total == 0
    assert not warnings(caplog)


def test_an_explicit_bootstrap_never_bypasses() -> None:
    with Mesh(control_plane=f"127.0.0.1:{free_port()}") as mesh:
        with pytest.raises(NotReady):
            mesh.wait_for(NAME, 1.3)
        assert not mesh.snapshot.bypass


# --- the fixture for users -------------------------------------------------------------------


def test_mesh_off_switches_everything_off_and_on_again(
    ads_server: AdsServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    from meshsdk.mesh import switched_off

    monkeypatch.setenv("MESHSDK_CONTROL_PLANE", ads_server.address)
    ads_server.set(service(NAME, [("127.0.0.1", 1)]))
    with default_mesh() as existing:
        assert not existing.wait_for(NAME, 5).passthrough
        with switched_off():
            assert existing.snapshot.bypass
            assert existing.wait_for(NAME, 0).passthrough
            ads_server.wait(lambda: not ads_server.streams)
        assert default_mesh() is existing
        assert not existing.wait_for(NAME, 5).passthrough


def test_mesh_off_in_a_users_project(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import os, sys, threading
        import meshsdk

        def test_off(mesh_off):
            assert "grpc" not in sys.modules
            assert os.environ["MESHSDK_ENABLED"] == "false"
            mesh = meshsdk.default_mesh()
            assert mesh.wait_for("reviews:9080", 0).passthrough
            assert not [t for t in threading.enumerate() if t.name.startswith("meshsdk")]

        def test_on():
            assert "MESHSDK_ENABLED" not in os.environ
            assert not meshsdk.Mesh().snapshot.bypass
        """
    )
    result = pytester.runpytest_subprocess("-q")
    result.assert_outcomes(passed=2)
