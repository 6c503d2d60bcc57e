"""The last good configuration on disk: starts without a control plane, kill -9 on either side."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from google.protobuf import any_pb2

from meshsdk.errors import NotReady
from meshsdk.mesh import Mesh
from meshsdk.model import ListenerView
from meshsdk.xds.store import Store
from tests.support.ads import AdsProcess, AdsServer, free_port, wait_until
from tests.support.resources import EDS, LDS, endpoints, service

NAME = "reviews.default.svc.cluster.local:9080"
CLUSTER = "outbound|9080||reviews.default.svc.cluster.local"
ROOT = Path(__file__).resolve().parents[2]


def targets(view: ListenerView | None) -> list[str]:
    assert view is not None
    assert not view.absent, view.absent
    return sorted(e.target for c in view.clusters.values() for e in c.endpoints)


def the_file(directory: Path) -> Path:
    (found,) = directory.iterdir()
    return found


def written(directory: Path, *names: str) -> bool:
    """Whether the file is there and has all of `names`."""
    files = list(directory.glob("*.json"))
    text = files[0].read_text() if files else ""
    return bool(files) and all(f'"{name}"' in text for name in (NAME, *names))


def mesh_at(address: str, directory: Path, **arguments: object) -> Mesh:
    return Mesh(control_plane=address, state_dir=directory, workload_name="web", **arguments)  # type: ignore[arg-type]


def test_a_process_started_without_the_control_plane_serves_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    control_plane = AdsProcess(tmp_path, service(NAME, [("127.0.0.1", 7)]))
    state = tmp_path / "state"
    with control_plane:
        with mesh_at(control_plane.address, state) as mesh:
            mesh.wait_for(NAME, 5)
        control_plane.kill()
        file = the_file(state)
        an_hour_ago = time.time() - 3600
        os.utime(file, (an_hour_ago, an_hour_ago))
        with (
            caplog.at_level(logging.WARNING, "meshsdk"),
            mesh_at(control_plane.address, state, reconnect_max=0.2) as mesh,
        ):
            started = time.monotonic()
            assert targets(mesh.wait_for(NAME, 5)) == ["127.0.0.1:7"]
            mesh.wait_ready(1)
            assert time.monotonic() - started < 5
            assert mesh.snapshot.stale_since == pytest.approx(an_hour_ago, abs=1)
            with pytest.raises(NotReady):
                mesh.wait_for("not.in.the.store:80", 0.2)
            control_plane.start()
            wait_until(lambda: mesh.snapshot.stale_since is None)
            assert targets(mesh.snapshot.view(NAME)) == ["127.0.0.1:7"]
    (line,) = [r.getMessage() for r in caplog.records if "last confirmed" in r.getMessage()]
    assert " 360" in line
    assert str(file) in line


def test_a_hung_control_plane_delays_the_start_by_a_moment_only(tmp_path: Path) -> None:
    with AdsServer() as server:
        server.set(service(NAME, [("127.0.0.1", 7)]))
        with mesh_at(server.address, tmp_path) as mesh:
            mesh.wait_for(NAME, 5)
        server.hung = True
        with mesh_at(server.address, tmp_path) as mesh:
            assert targets(mesh.wait_for(NAME, 2)) == ["127.0.0.1:7"]
            assert mesh.snapshot.stale_since is not None
            server.set(endpoints(CLUSTER, [("127.0.0.1", 8)]))
            server.hung = False
            wait_until(lambda: mesh.snapshot.stale_since is None)
            assert targets(mesh.snapshot.view(NAME)) == ["127.0.0.1:8"]


def test_with_the_control_plane_there_what_is_stale_is_never_shown(tmp_path: Path) -> None:
    with AdsServer() as server:
        server.set(service(NAME, [("127.0.0.1", 7)]))
        with mesh_at(server.address, tmp_path) as mesh:
            mesh.wait_for(NAME, 5)
        server.remove(LDS, NAME)
        with mesh_at(server.address, tmp_path) as mesh:
            assert "does not exist" in mesh.wait_for(NAME, 5).absent
            wait_until(lambda: not written(tmp_path))


def test_what_changed_while_it_was_stale_is_replaced_by_the_truth(tmp_path: Path) -> None:
    server = AdsServer(port=free_port())
    server.set(service(NAME, [("127.0.0.1", 7)]), service("gone:80", [("127.0.0.1", 6)]))
    with server, mesh_at(server.address, tmp_path) as mesh:
        mesh.wait_for(NAME, 5)
        mesh.wait_for("gone:80", 5)
    server.replace(service(NAME, [("127.0.0.1", 9)]))
    with mesh_at(server.address, tmp_path, reconnect_max=0.2) as mesh:
        assert targets(mesh.wait_for(NAME, 5)) == ["127.0.0.1:7"]
        assert targets(mesh.snapshot.view("gone:80")) == ["127.0.0.1:6"]
        with server:
            wait_until(lambda: targets(mesh.snapshot.view(NAME)) == ["127.0.0.1:9"])
            wait_until(lambda: mesh.wait_for("gone:80", 1).absent)
            wait_until(lambda: mesh.snapshot.stale_since is None)


_SCRIPT = """
import sys, time
from meshsdk.mesh import Mesh
mesh = Mesh(control_plane=sys.argv[1], state_dir=sys.argv[2], workload_name="web")
view = mesh.wait_for(sys.argv[3], 30)
print(*[e.target for c in view.clusters.values() for e in c.endpoints], flush=True)
if sys.argv[4:]:
    time.sleep(60)
"""


def run(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def test_a_killed_process_finds_its_configuration_again(tmp_path: Path) -> None:
    control_plane = AdsProcess(tmp_path, service(NAME, [("127.0.0.1", 7)]))
    state = tmp_path / "state"
    with control_plane:
        first = run(control_plane.address, str(state), NAME, "stay")
        assert first.stdout is not None
        assert first.stdout.readline() == "127.0.0.1:7\n"
        wait_until(lambda: written(state))
        first.kill()
        first.communicate()
        control_plane.kill()
        second = run(control_plane.address, str(state), NAME)
        output, _ = second.communicate(timeout=60)
        assert output == "127.0.0.1:7\n"
        assert second.returncode == 0


def test_a_short_script_leaves_its_configuration_behind(tmp_path: Path) -> None:
    with AdsServer() as server:
        server.set(service(NAME, [("127.0.0.1", 7)]))
        script = run(server.address, str(tmp_path), NAME)
        script.communicate(timeout=60)
        assert script.returncode == 0
    saved = Store(str(tmp_path), "default", "web", server.address).load()
    assert saved is not None
    assert NAME in saved.resources[LDS]


def test_a_killed_control_plane_harms_no_running_process(tmp_path: Path) -> None:
    control_plane = AdsProcess(tmp_path, service(NAME, [("127.0.0.1", 7)]))
    with control_plane, mesh_at(control_plane.address, tmp_path / "s", reconnect_max=0.2) as mesh:
        view = mesh.wait_for(NAME, 5)
        control_plane.kill()
        wait_until(lambda: "not connected" in repr(mesh))
        assert mesh.snapshot.view(NAME) is view
        assert mesh.snapshot.stale_since is None
        control_plane.start()
        wait_until(lambda: "not connected" not in repr(mesh))
        assert mesh.snapshot.view(NAME) is view


def test_a_damaged_file_is_ignored_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with AdsServer() as server:
        server.set(service(NAME, [("127.0.0.1", 7)]))
        with mesh_at(server.address, tmp_path) as mesh:
            mesh.wait_for(NAME, 5)
        file = the_file(tmp_path)
        file.write_text(file.read_text()[:200])
        with caplog.at_level(logging.WARNING, "meshsdk"), mesh_at(server.address, tmp_path) as mesh:
            assert targets(mesh.wait_for(NAME, 5)) == ["127.0.0.1:7"]
        assert written(tmp_path)
    assert len([r for r in caplog.records if "is ignored" in r.getMessage()]) == 1


def test_a_stored_resource_that_cannot_be_decoded_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    store = Store(str(tmp_path), "default", "web", f"127.0.0.1:{port}")
    with AdsServer() as server:
        server.set(service(NAME, [("127.0.0.1", 7)]))
        with mesh_at(server.address, tmp_path / "other") as mesh:
            mesh.wait_for(NAME, 5)
    good = Store(str(tmp_path / "other"), "default", "web", server.address).load()
    assert good is not None
    resources = {kind: dict(items) for kind, items in good.resources.items()}
    resources[LDS]["bad:80"] = b"\xff\xff\xff"
    resources["type.googleapis.com/a.future.Type"] = {"x": any_pb2.Any().SerializeToString()}
    store.save(resources, good.versions, {})
    with mesh_at(f"127.0.0.1:{port}", tmp_path) as mesh:
        assert targets(mesh.wait_for(NAME, 5)) == ["127.0.0.1:7"]
        assert mesh.snapshot.view("bad:80") is None
    assert len([r for r in caplog.records if "bad:80" in r.getMessage()]) == 1


def test_a_change_is_written_soon(tmp_path: Path) -> None:
    with AdsServer() as server:
        server.set(service(NAME, [("127.0.0.1", 7)]))
        with mesh_at(server.address, tmp_path) as mesh:
            mesh.wait_for(NAME, 5)
            wait_until(lambda: written(tmp_path))
            server.set(endpoints(CLUSTER, [("127.0.0.1", 8)]))
            store = Store(str(tmp_path), "default", "web", server.address)
            packed = endpoints(CLUSTER, [("127.0.0.1", 8)]).SerializeToString()

            def has_the_change() -> bool:
                saved = store.load()
                return saved is not None and saved.resources[EDS][CLUSTER] == packed

            wait_until(has_the_change)
