"""`python -m meshsdk doctor` and `dump`, as commands and from inside an application."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from meshsdk import doctor
from meshsdk.mesh import Mesh
from tests.support.ads import AdsServer, wait_until
from tests.support.resources import route, service
from tests.support.servers import ROOT, free_port

REVIEWS = "reviews.default.svc.cluster.local:9080"


def meshsdk(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "meshsdk", *arguments], cwd=ROOT, env={**os.environ, **environ},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def findings(report: dict[str, Any], level: str) -> list[str]:
    return [item["message"] for item in report["findings"] if item["level"] == level]


# --- doctor ----------------------------------------------------------------------------------


def test_all_is_well_with_a_control_plane(ads_server: AdsServer) -> None:
    result = meshsdk("doctor", "-o", "json", MESHSDK_CONTROL_PLANE=ads_server.address)
    report = json.loads(result.stdout)
    assert (result.returncode, result.stderr) == (0, "")
    assert report["ok"] is True
    assert report["mesh"]["control_plane"] == ads_server.address
    assert report["mesh"]["source"] == "MESHSDK_CONTROL_PLANE"
    assert report["mesh"]["reachable"] is True
    assert findings(report, "error") == []
    covered = {row["library"]: row["covered"] for row in report["clients"]}
    assert covered["grpcio"] is covered["httpx"] is covered["httpx2"] is True
    assert covered["requests"] is covered["aiohttp"] is covered["urllib3"] is False
    assert {"grpcio", "uvicorn", "gunicorn", "werkzeug"} <= {
        row["library"] for row in report["servers"]
    }


def test_it_says_what_is_installed_and_not_covered(ads_server: AdsServer) -> None:
    text = meshsdk("doctor", MESHSDK_CONTROL_PLANE=ads_server.address).stdout
    assert "requests is installed and not covered: its calls go out past the mesh" in text
    assert "→ use httpx for calls to services of the mesh" in text
    assert f"control plane  {ads_server.address} (reachable; from MESHSDK_CONTROL_PLANE)" in text
    assert "not attached: use the adapters, or `run`" in text


def test_under_run_it_says_that_it_is_attached(ads_server: AdsServer) -> None:
    result = meshsdk(
        "run", "--control-plane", ads_server.address, "-m", "meshsdk", "doctor", "-o", "json"
    )
    report = json.loads(result.stdout)
    assert report["attached"] is True
    assert report["patches"] == {"grpc": "", "httpx": "", "httpx2": ""}
    assert "grpc.secure_channel is left alone" in " ".join(findings(report, "info"))


def test_a_control_plane_that_is_not_there_is_an_error() -> None:
    address = f"127.0.0.1:{free_port()}"
    result = meshsdk("doctor", "--timeout", "0.3", MESHSDK_CONTROL_PLANE=address)
    assert result.returncode == 1
    assert f"control plane {address}" in result.stdout
    assert "→ start the control plane" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_a_wrong_environment_is_an_error_in_words() -> None:
    result = meshsdk("doctor", "-o", "json", MESHSDK_ENABLED="perhaps")
    report = json.loads(result.stdout)
    assert (result.returncode, report["ok"]) == (1, False)
    assert "MESHSDK_ENABLED is 'perhaps'; give true or false" in findings(report, "error")[0]


def test_switched_off_is_said() -> None:
    result = meshsdk("doctor", "-o", "json", MESHSDK_ENABLED="false")
    report = json.loads(result.stdout)
    assert result.returncode == 0
    assert report["mesh"] == {"enabled": False, "reachable": False}
    assert findings(report, "warning") == [
        "the mesh is switched off: every call goes out unchanged"
    ]


def test_inside_an_application(mesh: Mesh, ads_server: AdsServer) -> None:
    import requests  # noqa: F401 - what it is about

    before = doctor.report(mesh)
    assert before["mesh"]["connection"] == "not started"
    mesh.wait_ready(5)
    report = doctor.report(mesh)
    assert report["mesh"]["connection"] == "connected"
    assert "requests is imported and not covered" in " ".join(findings(report, "warning"))
    assert json.loads(json.dumps(report)) == report


# --- dump ------------------------------------------------------------------------------------


@pytest.fixture
def reviews(ads_server: AdsServer) -> AdsServer:
    ads_server.set(
        service(
            REVIEWS,
            [("127.0.0.1", 9)],
            routes=[
                route("reviews-cluster", name="v1", headers={"end-user": "jason"}, timeout=2.5),
                route(status=503, body="no"),
            ],
            cluster_name="reviews-cluster",
        )
    )
    return ads_server


def test_dump_shows_what_a_workload_gets(reviews: AdsServer) -> None:
    result = meshsdk("dump", "reviews:9080", MESHSDK_CONTROL_PLANE=reviews.address)
    loaded = json.loads(result.stdout)
    assert (result.returncode, result.stderr) == (0, "")
    listener = loaded["listeners"][REVIEWS]
    assert listener["clusters"] == ["reviews-cluster"]
    host = listener["route_config"]["virtual_hosts"][0]
    assert [r.get("name") for r in host["routes"]] == ["v1", None]
    assert host["routes"][0]["action"]["timeout"] == 2.5
    endpoint = loaded["clusters"]["reviews-cluster"]["endpoints"][0]
    assert (endpoint["target"], endpoint["active"]) == ("127.0.0.1:9", 0)
    assert loaded["age"] is None


def test_dump_keeps_the_environment_to_itself(reviews: AdsServer) -> None:
    environ = {"MESHSDK_CONTROL_PLANE": reviews.address, "SECRET_TOKEN": "hunter2"}
    result = meshsdk("dump", "reviews:9080", **environ)
    assert result.returncode == 0
    assert "hunter2" not in result.stdout
    assert " object at 0x" not in result.stdout


def test_dump_says_how_old_a_configuration_from_disk_is(reviews: AdsServer, tmp_path: Path) -> None:
    environ = {"MESHSDK_CONTROL_PLANE": reviews.address, "MESHSDK_STATE_DIR": str(tmp_path)}
    assert meshsdk("dump", "reviews:9080", **environ).returncode == 0
    wait_until(lambda: list(tmp_path.glob("*.json")), 5)
    reviews.stop()
    before = time.time()
    loaded = json.loads(meshsdk("dump", "reviews:9080", **environ).stdout)
    assert REVIEWS in loaded["listeners"]
    assert loaded["stale_since"] <= before
    assert 0 <= loaded["age"] < 60


def test_dump_without_a_control_plane_says_why() -> None:
    address = f"127.0.0.1:{free_port()}"
    result = meshsdk("dump", "x:80", "--timeout", "0.3", MESHSDK_CONTROL_PLANE=address)
    assert result.returncode == 1
    assert "meshsdk dump: no configuration for x.default.svc" in result.stderr
    assert address in result.stderr
    assert "Traceback" not in result.stderr
    assert json.loads(result.stdout)["listeners"] == {}


def test_dump_with_a_wrong_environment() -> None:
    result = meshsdk("dump", MESHSDK_READY_TIMEOUT="x")
    assert result.returncode == 64
    assert "MESHSDK_READY_TIMEOUT is 'x'; give a number above 0" in result.stderr


def test_dump_inside_an_application(mesh: Mesh, reviews: AdsServer) -> None:
    mesh.wait_for(REVIEWS, 5)
    assert json.loads(json.dumps(doctor.dump(mesh)))["listeners"].keys() == {REVIEWS}
